// Put into the page before anything of it runs: notes every complaint, and answers the tests' questions.
window.seen = [];
addEventListener("error", (event) => seen.push(`error: ${event.message}`));
addEventListener("unhandledrejection", (event) => seen.push(`rejection: ${event.reason}`));
addEventListener("securitypolicyviolation", (event) => seen.push(`policy: ${event.violatedDirective}`));
for (const name of ["error", "warn"]) {
  const before = console[name];
  console[name] = (...words) => { seen.push(`${name}: ${words.join(" ")}`); before(...words); };
}

window.ask = {
  openAll: () => document.querySelectorAll("details").forEach((d) => { d.open = true; }),

  longestEpisode: () => [...document.querySelectorAll(".card")]
    .map((card) => [card.querySelectorAll(".step").length, card.id])
    .sort((a, b) => b[0] - a[0])[0][1],

  filter: (name, value) => {
    const list = document.querySelector(`select[name=${name}]`);
    list.value = value;
    list.dispatchEvent(new Event("input", { bubbles: true }));
  },

  centre: (selector) => {
    const element = document.querySelector(selector);
    element.scrollIntoView({ block: "center" });
    const box = element.getBoundingClientRect();
    return [box.x + box.width / 2, box.y + box.height / 2];
  },

  // A successful episode that holds a click.
  clickedEpisode: () => [...document.querySelectorAll(".card[data-outcome=success]")]
    .find((card) => ask.clickIn(card)).id,

  clickIn: (card) => [...card.querySelectorAll(".step")]
    .find((step) => /^click/.test(step.querySelector(".step-action")?.textContent)),

  // Its first click alone on the screen: where screenshot and mark are.
  showClick: (id) => {
    const card = document.getElementById(id);
    const step = ask.clickIn(card);
    card.querySelectorAll(".step").forEach((other) => { other.hidden = other !== step; });
    const svg = step.querySelector("svg.screen");
    svg.scrollIntoView({ block: "center" });
    const screen = svg.getBoundingClientRect();
    const mark = step.querySelector(".mark").getBoundingClientRect();
    const [x, y] = step.querySelector(".step-action").textContent.match(/\d+/g).map(Number);
    return {
      left: screen.x, top: screen.y, width: screen.width, x, y,
      markX: mark.x + mark.width / 2, markY: mark.y + mark.height / 2,
    };
  },

  hidden: (selector) => [...document.querySelectorAll(selector)].filter((e) => !e.checkVisibility()).length,

  // Text with less than 4.5:1 (large text: 3:1) against what is behind it; WCAG 2.2, 1.4.3.
  lowContrast: () => {
    const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
    const colours = (text) => (text.match(/rgba?\([^)]*\)/g) || []).map(numbers);
    const linear = (v) => (v / 255 <= 0.04045 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const ratio = (a, b) => {
      const [high, low] = [luminance(a), luminance(b)].sort((p, q) => q - p);
      return (high + 0.05) / (low + 0.05);
    };
    const behind = (element) => {
      for (let e = element; e; e = e.parentElement) {
        const style = getComputedStyle(e);
        const stops = colours(style.backgroundImage);
        if (stops.length) return stops;
        const [colour] = colours(style.backgroundColor);
        if (colour && (colour.length < 4 || colour[3] > 0)) return [colour];
      }
      return [[255, 255, 255]];
    };
    const bad = [];
    let checked = 0;
    for (const element of document.querySelectorAll("body *")) {
      const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
      if (!own || element.closest("button:disabled, script, .skip")) continue;
      if (!element.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
      const style = getComputedStyle(element);
      const [colour] = colours(element instanceof SVGElement ? style.fill : style.color);
      if (!colour) continue;
      checked += 1;
      const size = parseFloat(style.fontSize);
      const large = size >= 24 || (size >= 18.66 && parseInt(style.fontWeight, 10) >= 700);
      const worst = Math.min(...behind(element).map((back) => ratio(colour, back)));
      if (worst < (large ? 3 : 4.5)) bad.push(`${element.tagName} ${worst.toFixed(2)} ${element.textContent}`);
    }
    return checked > 200 ? bad : [`only ${checked} texts were found`];
  },
};
