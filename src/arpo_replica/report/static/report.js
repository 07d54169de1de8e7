// Comfort only: without this script every text, table, figure and the plain cards are still there.
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

  // The address of what is open, so that a reader can pass it on. Browsers refuse one for every move of a slider.
  let pending;
  const address = (name) => {
    clearTimeout(pending);
    pending = setTimeout(() => { if (location.hash !== `#${name}`) history.replaceState(null, "", `#${name}`); }, 100);
  };

  // One step of an episode at a time.
  const players = new WeakMap();
  let current = null;
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
    const name = () => (at ? `${card.id}.${at + 1}` : card.id);
    if (navigator.clipboard) {
      const copy = make("button", { type: "button", textContent: "Copy link" });
      copy.addEventListener("click", async () => {
        const link = `${location.href.split("#")[0]}#${name()}`;
        copy.textContent = await navigator.clipboard.writeText(link).then(() => "Copied", () => "The address bar has it");
      });
      bar.append(copy);
    }
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
      if (current === card) address(name());
    };
    back.addEventListener("click", () => show(at - 1));
    next.addEventListener("click", () => show(at + 1));
    slider.addEventListener("input", () => show(Number(slider.value) - 1));
    show(0);
    const player = { move: (by) => show(at + by), to: show, last: steps.length - 1 };
    players.set(card, player);
    return player;
  };
  // "toggle" and "focusin" of cards, also of those that are unpacked later.
  document.addEventListener("toggle", (event) => {
    const card = event.target;
    if (!card.classList.contains("card")) return;
    if (card.open) {
      prepare(card);
      current = card;
      if (location.hash.slice(1).split(".")[0] !== card.id) address(card.id);
      const box = card.getBoundingClientRect();
      if (box.top < 0 || box.bottom > innerHeight) card.scrollIntoView({ block: "start" });
    } else if (current === card) { current = null; address("episodes"); }
  }, true);
  document.addEventListener("focusin", (event) => {
    const card = event.target.closest(".card");
    if (card?.open) current = card;
  });

  // The index of all episodes; cards that are not plain HTML are unpacked when they are wanted.
  const index = JSON.parse(document.getElementById("episode-index").textContent);
  const outcomes = Object.keys(index.outcomes);
  const blocks = [...document.querySelectorAll(".group-block")];
  const groups = index.groups.map((group, i) => ({
    ...group, block: blocks[i], grid: blocks[i].querySelector(".cards"), limit: 24,
    entries: group.episodes.map(([id, outcome, domain, flip, task, chunk, place, seed, failure]) => ({
      id, chunk, place, card: chunk < 0 ? document.getElementById(id) : null,
      outcome: outcomes[outcome], domain: index.domains[domain], flip: index.flips[flip],
      task: index.tasks[task].toLowerCase(), split: group.split, arm: group.arm, seed, failure: index.failures[failure] || "",
    })),
  }));
  const home = new Map(groups.flatMap((group) => group.entries.map((entry) => [entry.id, { group, entry }])));
  const chunks = new Map();
  const unpack = (number) => {
    if (!chunks.has(number)) {
      const text = document.getElementById(`chunk-${number}`).textContent;
      const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
      const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
      chunks.set(number, new Response(stream).json());
    }
    return chunks.get(number);
  };
  const cardOf = async (entry) => {
    if (!entry.card) {
      // The same escaped markup as the plain cards; the page's policy holds for it as well.
      const html = (await unpack(entry.chunk))[entry.place];
      entry.card ||= document.adoptNode(new DOMParser().parseFromString(html, "text/html").querySelector(".card"));
    }
    return entry.card;
  };
  const place = async (group, entry) => {
    const card = await cardOf(entry);
    if (card.parentNode !== group.grid) {
      const after = group.entries.slice(group.entries.indexOf(entry) + 1).find((other) => other.card?.parentNode === group.grid);
      group.grid.insertBefore(card, after ? after.card : null);
    }
    card.hidden = false;
    return card;
  };

  // Filters of episodes.
  const form = document.getElementById("filters");
  let fits = () => true;
  let asked = 0;
  const show = async (group) => {
    const turn = ++asked;
    group.turn = turn;
    if (!group.block.open) { group.entries.forEach((entry) => { if (entry.card) entry.card.hidden = !fits(entry); }); return; }
    const wanted = group.entries.filter(fits);
    const shown = new Set(wanted.slice(0, group.limit));
    group.entries.forEach((entry) => { if (entry.card && !shown.has(entry) && !entry.card.open) entry.card.hidden = true; });
    for (const entry of shown) {
      await place(group, entry);
      if (group.turn !== turn) return;
    }
    group.more.hidden = wanted.length <= group.limit;
    group.more.textContent = `Show more: ${Math.min(group.limit, wanted.length)} of ${wanted.length} are here`;
  };
  groups.forEach((group) => {
    group.more = make("button", { type: "button", className: "more", hidden: true });
    group.more.addEventListener("click", () => { group.limit += 48; show(group); });
    group.grid.after(group.more);
    group.block.addEventListener("toggle", (event) => { if (event.target === group.block && group.block.open) show(group); });
  });
  let clear = () => {};
  const choice = (target, key, label, values, names = {}) => {
    const list = make("select", { name: key }, [make("option", { value: "", textContent: "all" }), ...values.map((value) => make("option", { value, textContent: names[value] || value }))]);
    const field = make("label", { textContent: label }, [list]);
    if (values.length > 1) target.append(field);
    return [key, list];
  };
  if (form) {
    const all = groups.filter((group) => group.arm).flatMap((group) => group.entries);
    const values = (key) => [...new Set(all.map((entry) => entry[key]))];
    const flips = values("flip").filter((flip) => flip !== "none");
    const lists = [
      choice(form, "split", "Split", values("split")), choice(form, "arm", "Arm", values("arm")),
      choice(form, "domain", "Domain", values("domain").sort()), choice(form, "outcome", "Outcome", values("outcome"), index.outcomes),
      choice(form, "flip", "Task", flips, { gained: "gained (0 → 1)", lost: "lost (1 → 0)", same: "unchanged" }),
      choice(form, "failure", "Why it failed", values("failure").filter(Boolean)), choice(form, "seed", "Seed", values("seed").filter(Boolean)),
    ];
    const text = make("input", { type: "search", placeholder: "words of a task" });
    form.append(make("label", { textContent: "Search" }, [text]));
    const reset = make("button", { type: "button", textContent: "Clear" });
    const count = make("output");
    count.setAttribute("aria-live", "polite");
    form.append(reset, count);
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      const active = Boolean(wanted) || lists.some(([, list]) => list.value);
      fits = (entry) => lists.every(([key, list]) => !list.value || entry[key] === list.value || (key === "flip" && entry.flip.split(" ").includes(list.value)) || (key === "seed" && !entry.seed)) && entry.task.includes(wanted);
      let found = 0;
      groups.forEach((group) => {
        const here = group.entries.filter(fits).length;
        if (group.arm) found += here;
        group.limit = 24;
        group.block.hidden = !here;
        if (active && here) group.block.open = true;
        show(group);
      });
      reset.disabled = !active;
      count.textContent = `${found} of ${all.length} episode${all.length === 1 ? "" : "s"}`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    clear = () => { lists.forEach(([, list]) => { list.value = ""; }); text.value = ""; apply(); };
    reset.addEventListener("click", clear);
    apply();
  }

  // A link to an episode opens it; a filter that would hide it gives way.
  const open = async ({ group, entry }, step = 1) => {
    if (!fits(entry)) clear();
    group.block.hidden = false;
    group.block.open = true;
    const card = await place(group, entry);
    card.open = true;
    current = card;
    prepare(card)?.to(step - 1);
    address(step > 1 ? `${card.id}.${step}` : card.id);
    card.scrollIntoView({ block: "start" });
    card.querySelector("summary").focus({ preventScroll: true });
  };
  const follow = () => {
    const [name, step] = location.hash.slice(1).split(".");
    const found = home.get(name);
    if (found) open(found, Number(step) || 1);
  };
  const neighbour = (by) => {
    const { group, entry } = home.get(current.id);
    const wanted = group.entries.filter((other) => other === entry || fits(other));
    const next = wanted[wanted.indexOf(entry) + by];
    if (!next) return;
    current.open = false;
    open({ group, entry: next });
  };
  document.addEventListener("keydown", (event) => {
    if (event.altKey || event.ctrlKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
    if (!current) return;
    const player = players.get(current);
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key === "ArrowLeft" || key === "ArrowRight") player?.move(key === "ArrowLeft" ? -1 : 1);
    else if (key === "Home" || key === "End") player?.to(key === "Home" ? 0 : player.last);
    else if (key === "n" || key === "p") neighbour(key === "n" ? 1 : -1);
    else if (key === "Escape") { const card = current; card.open = false; card.querySelector("summary").focus(); }
    else return;
    event.preventDefault();
  });
  addEventListener("hashchange", follow);
  follow();

  // Filter of tasks.
  const tasks = document.getElementById("matrix-filter");
  if (tasks) {
    const rows = [...document.querySelectorAll(".matrix tbody tr:not(.group)")];
    const [, list] = choice(tasks, "task-flip", "Tasks", ["gained", "lost"], { gained: "gained (0 → 1)", lost: "lost (1 → 0)" });
    const text = make("input", { type: "search", placeholder: "words of a task" });
    const count = make("output");
    count.setAttribute("aria-live", "polite");
    tasks.append(make("label", { textContent: "Search" }, [text]), count);
    const apply = () => {
      const wanted = text.value.trim().toLowerCase();
      let shown = 0;
      rows.forEach((row) => {
        const here = (!list.value || (row.dataset.flip || "").includes(list.value)) && (!wanted || row.cells[0].textContent.toLowerCase().includes(wanted));
        row.hidden = !here;
        shown += here;
      });
      const active = wanted || list.value;
      document.querySelectorAll("details.domain").forEach((domain) => {
        domain.hidden = !domain.querySelector("tbody tr:not([hidden])");
        if (active && !domain.hidden) domain.open = true;
      });
      count.textContent = `${shown} of ${rows.length} task${rows.length === 1 ? "" : "s"}`;
    };
    tasks.addEventListener("input", apply);
    tasks.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // Where the reader is.
  const links = new Map([...document.querySelectorAll(".contents a")].map((link) => [link.hash.slice(1), link]));
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    const link = links.get(entry.target.getAttribute("aria-labelledby"));
    if (link) link.classList.toggle("here", entry.isIntersecting);
  }), { rootMargin: "-10% 0px -75% 0px" });
  document.querySelectorAll("main section").forEach((section) => seen.observe(section));
})();
