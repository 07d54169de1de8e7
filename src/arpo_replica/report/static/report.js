// Comfort only: without this script every text, table, figure and step is still there.
"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  const make = (name, properties = {}, children = []) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };

  // Light or dark by choice.
  const theme = make("button", { type: "button", className: "theme" });
  const isDark = () => (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const nameTheme = () => { theme.textContent = isDark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`); };
  theme.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; nameTheme(); });
  nameTheme();
  document.querySelector(".masthead").append(theme);

  // One step of an episode at a time.
  const players = new Map();
  const prepare = (card) => {
    if (players.has(card)) return players.get(card);
    const steps = [...card.querySelectorAll(".step")];
    if (!steps.length) return null;
    const back = make("button", { type: "button", textContent: "← Back" });
    const next = make("button", { type: "button", textContent: "Next →" });
    const slider = make("input", { type: "range", min: 1, max: steps.length, value: 1, step: 1 });
    slider.setAttribute("aria-label", "Step");
    const where = make("output");
    where.setAttribute("aria-live", "polite");
    const bar = make("div", { className: "player" }, [back, next, slider, where]);
    card.querySelector(".steps").before(bar);
    let at = 0;
    const show = (index) => {
      at = Math.max(0, Math.min(steps.length - 1, index));
      steps.forEach((step, i) => { step.hidden = i !== at; });
      back.disabled = at === 0;
      next.disabled = at === steps.length - 1;
      slider.value = at + 1;
      where.textContent = `${at + 1} of ${steps.length}`;
      slider.setAttribute("aria-valuetext", steps[at].querySelector(".step-title").textContent);
    };
    back.addEventListener("click", () => show(at - 1));
    next.addEventListener("click", () => show(at + 1));
    slider.addEventListener("input", () => show(Number(slider.value) - 1));
    show(0);
    const player = { move: (by) => show(at + by), to: show, last: steps.length - 1 };
    players.set(card, player);
    return player;
  };
  let current = null;
  const cards = [...document.querySelectorAll(".card")];
  cards.forEach((card) => card.addEventListener("toggle", () => {
    if (card.open) { prepare(card); current = card; } else if (current === card) { current = null; }
  }));
  cards.forEach((card) => card.addEventListener("focusin", () => { if (card.open) current = card; }));
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    const player = current && players.get(current);
    if (!player) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by) player.move(by);
    else if (event.key === "Escape") { current.open = false; cards.find((card) => card === current)?.querySelector("summary").focus(); }
    else return;
    event.preventDefault();
  });

  // A link to an episode opens it.
  const follow = () => {
    const card = document.getElementById(location.hash.slice(1));
    if (!card || !card.classList.contains("card")) return;
    clear();
    card.closest(".group-block").open = true;
    card.open = true;
    prepare(card);
    current = card;
    card.scrollIntoView({ block: "start" });
    card.querySelector("summary").focus({ preventScroll: true });
  };

  // Filters.
  const form = document.getElementById("filters");
  let clear = () => {};
  if (form) {
    const values = (key) => [...new Set(cards.map((card) => card.dataset[key]))];
    const select = (key, label) => {
      const list = make("select", { name: key }, [make("option", { value: "", textContent: "all" }), ...values(key).map((value) => make("option", { value, textContent: value.replace("_", " ") }))]);
      form.append(make("label", { textContent: label }, [list]));
      return [key, list];
    };
    const lists = [select("split", "Split"), select("arm", "Arm"), select("outcome", "Outcome")];
    const text = make("input", { type: "search", placeholder: "e.g. click-tab" });
    form.append(make("label", { textContent: "Task" }, [text]));
    const count = make("output");
    count.setAttribute("aria-live", "polite");
    form.append(count);
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      const active = wanted || lists.some(([, list]) => list.value);
      let shown = 0;
      cards.forEach((card) => {
        const fits = lists.every(([key, list]) => !list.value || card.dataset[key] === list.value) && card.dataset.task.toLowerCase().includes(wanted);
        card.hidden = !fits;
        shown += fits;
      });
      document.querySelectorAll(".group-block").forEach((group) => {
        group.hidden = !group.querySelector(".card:not([hidden])");
        if (active && !group.hidden) group.open = true;
      });
      count.textContent = `${shown} of ${cards.length} episodes`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    clear = () => { lists.forEach(([, list]) => { list.value = ""; }); text.value = ""; apply(); };
    apply();
  }
  addEventListener("hashchange", follow);
  follow();

  // Where the reader is.
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const link = links.get(entry.target.getAttribute("aria-labelledby"));
    if (link) link.classList.toggle("here", entry.isIntersecting);
  }), { rootMargin: "-10% 0px -75% 0px" });
  document.querySelectorAll("main section").forEach((section) => seen.observe(section));
})();
