// Starts one episode of a MiniWoB++ page that has loaded. Called as (function)(seed); returns the page's
// own instruction. Changes to the page, all of them:
//  - no time limit, no START cover, no reward display, no click markers: the policy sees the task alone;
//  - no animation, no blinking caret, one mouse pointer: the same state always looks the same;
//  - jQuery UI places dialogs as in the 500 x 240 window that MiniWoB++ was made for, however small ours is;
//  - the first end of the episode is kept in window.arpoEpisode = {done, raw, reason}; the page is then
//    covered by one plain sheet, the same for right and wrong, under which nothing reacts any more.
(seed) => {
  if (typeof core === "undefined" || typeof genProblem === "undefined") {
    throw new Error("no MiniWoB++ page at " + location.href);
  }
  const episode = { done: false, raw: 0, reason: null, seed: seed };
  window.arpoEpisode = episode;
  // What has reached the page so far; lets a recorder wait for its own clicks and keys.
  const received = { clicks: 0, keys: 0 };
  if (!window.arpoReceived) {
    window.addEventListener("mouseup", () => { window.arpoReceived.clicks += 1; }, true);
    window.addEventListener("keyup", (event) => { window.arpoReceived.keys += event.key.length === 1; }, true);
  }
  window.arpoReceived = received;

  if (!document.getElementById("arpo-style")) {
    const style = document.createElement("style");
    style.id = "arpo-style";
    style.textContent =
      "html { overflow: hidden }" +
      "* { caret-color: transparent !important; cursor: default !important;" +
      " animation: none !important; transition: none !important }" +
      "#click-canvas, #reward-display, #sync-task-cover { display: none !important }" +
      "#arpo-end { position: fixed; inset: 0; z-index: 2147483647; background: #dfeee0; color: #104010;" +
      " font: bold 28px sans-serif; display: flex; align-items: center; justify-content: center }";
    document.head.appendChild(style);
  }
  if (window.jQuery) jQuery.fx.off = true;
  if (window.jQuery && jQuery.position && !jQuery.position.arpo) {
    const within = jQuery.position.getWithinInfo;
    jQuery.position.getWithinInfo = (element) => {
      const info = within(element);
      return Object.assign(info, { width: Math.max(info.width, 500), height: Math.max(info.height, 240) });
    };
    jQuery.position.arpo = true;
  }

  const end = (reward, reason) => {
    if (episode.done) return;
    Object.assign(episode, { done: true, raw: Number(reward) || 0, reason: reason === undefined ? null : reason });
    if (document.activeElement) document.activeElement.blur();
    for (const child of document.body.children) child.inert = true;
    const sheet = document.createElement("div");
    sheet.id = "arpo-end";
    sheet.textContent = "DONE";
    document.body.appendChild(sheet);
    // Keys still reach the document when nothing has the focus.
    for (const kind of ["keydown", "keypress", "keyup", "input"]) {
      window.addEventListener(kind, (event) => { event.stopImmediatePropagation(); event.preventDefault(); }, true);
    }
  };
  core.endEpisode = (reward, timeProportional, reason) => end(reward, reason);
  core.countdownTimer = () => {};
  core.EPISODE_MAX_TIME = 0x7fffffff;

  Math.seedrandom(seed);
  core.startEpisodeReal();
  clearTimeout(core.EP_TIMER);
  const utterance = core.getUtterance();
  return typeof utterance === "string" ? utterance : utterance.utterance;
}
