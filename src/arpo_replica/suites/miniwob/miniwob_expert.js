// What an expert does next on a MiniWoB++ page. Called as (function)(u, v) with two numbers in [0, 1)
// that place the click; stateless: it reads the page and the instruction as they are now.
// Returns {kind: "click", thought, x, y} in screen pixels, {kind: "type", thought, text}, or
// {kind: "finished", thought, x, y} with a screen pixel of the end sheet's background; throws where the
// page offers no way on.
(u, v) => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const one = (selector) => document.querySelector(selector);
  const visible = (element) => element && element.getClientRects().length > 0;
  const query = one("#query") ? one("#query").textContent.replace(/\s+/g, " ").trim() : "";
  const quoted = () => { const found = /"(.*)"/.exec(query); return found ? found[1] : null; };
  const click = (element, thought) => ({ kind: "click", element, thought });
  const byText = (selector, text) => all(selector).find((e) => visible(e) && e.textContent.trim() === text);
  const button = (text) => click(byText("#area button", text), "Click " + text + ".");

  // Entry tasks: focus the first field that lacks its word, type the word; at the end submit.
  const enter = (...wanted) => {
    const next = wanted.find(([field, text]) => field.value !== text);
    if (!next) return click(one("#subbtn"), "Click " + one("#subbtn").textContent.trim() + ".");
    const [field, text, name] = next;
    if (document.activeElement === field) return { kind: "type", text, thought: "Type " + text + "." };
    return click(field, "Click the " + (name || "text") + " field.");
  };

  const plans = {
    "click-test": () => click(one("#subbtn"), "Click the button."),
    "click-test-2": () => button("ONE"),
    "click-button": () => button(quoted()),
    "click-dialog": () => click(one(".ui-dialog-titlebar-close"), "Click x."),
    "click-dialog-2": () => {
      const name = quoted();
      const close = one(".ui-dialog-titlebar-close");
      return click(name === "x" ? close : byText(".ui-dialog-buttonset button", name), "Click " + name + ".");
    },
    "click-tab": () => {
      const name = /Tab #\d/.exec(query)[0];
      return click(byText("#area ul a", name), "Click " + name + ".");
    },
    "click-color": () => {
      const color = /Click on the (\w+) colored/.exec(core.getUtterance())[1];
      return click(one('#area .color[data-color="' + color + '"]'), "Click the " + color + " box.");
    },
    "identify-shape": () => {
      const shape = one("#area_svg").firstElementChild;
      const kind = {
        rect: "Rectangle", circle: "Circle", polygon: "Triangle",
        text: /\d/.test(shape.textContent) ? "Number" : "Letter",
      }[shape.tagName.toLowerCase()];
      return click(byText("#area-buttons button", kind), "Click " + kind + ".");
    },
    "focus-text": () => click(one("#tt"), "Click the text field."),
    "focus-text-2": () => {
      const place = /(1st|2nd|3rd)/.exec(query)[1];
      return click(one("#tt" + place[0]), "Click the " + place + " text field.");
    },
    "click-widget": () => {
      const kind = quoted();
      return click(one('#area [data-type="' + kind + '"]'), "Click the " + kind + ".");
    },
    // The page keeps its own record of what was pressed.
    "click-button-sequence": () => button(buttonsPushed.length === 0 ? "ONE" : "TWO"),
    "click-collapsible": () =>
      visible(one(".ui-accordion-content"))
        ? click(one("#subbtn"), "Click Submit.")
        : click(one("#area h3"), "Expand the section."),
    "click-option": () => {
      const name = /^Select (.*) and click Submit/.exec(query)[1];
      const label = all("#boxes label").find((e) => e.textContent.trim() === name);
      const box = label && label.querySelector("input");
      return box && box.checked ? click(one("#subbtn"), "Click Submit.") : click(box, "Select " + name + ".");
    },
    "enter-text": () => enter([one("#tt"), quoted()]),
    "enter-text-dynamic": () => enter([one("#tt"), quoted()]),
    "enter-password": () =>
      enter([one("#password"), quoted(), "first text"], [one("#verify"), quoted(), "second text"]),
    "login-user": () => {
      const [, user, password] = /username "(.*)" and the password "(.*)" into/.exec(query);
      return enter([one("#username"), user, "username"], [one("#password"), password, "password"]);
    },
    "simple-arithmetic": () => {
      const [, a, sign, b] = /(\d) ([-+x]) (\d)/.exec(one("#math-problem").textContent);
      const result = { "+": +a + +b, "-": a - b, x: a * b }[sign];
      return enter([one("#math-answer"), String(result)]);
    },
    "click-link": () => click(byText("#area .alink", quoted()), "Click " + quoted() + "."),
    "grid-coordinate": () => {
      const point = /\(-?\d,-?\d\)/.exec(query)[0];
      return click(document.getElementById(point), "Click " + point + ".");
    },
  };

  // Where the page lies on the screen: all over it, or below the browser's frame (equal borders left,
  // right and below, the rest above). A window that fills a tiny screen reports a larger outer size.
  const fills = innerWidth === screen.width && innerHeight === screen.height;
  const border = fills ? 0 : (outerWidth - innerWidth) / 2;
  const left = fills ? 0 : screenX + border;
  const top = fills ? 0 : screenY + outerHeight - innerHeight - border;
  const onScreen = (x, y) => ({
    x: Math.round((left + x) * devicePixelRatio),
    y: Math.round((top + y) * devicePixelRatio),
  });

  if (!window.arpoEpisode) throw new Error("the episode was not started");
  if (arpoEpisode.done) return { kind: "finished", thought: "The task is done.", ...onScreen(2, 2) };
  const page = location.pathname.split("/").pop().replace(/\.html$/, "");
  if (!plans[page]) throw new Error("the expert does not know the page " + page);
  const step = plans[page]();
  if (step.kind !== "click") return step;
  if (!visible(step.element)) throw new Error("the target is not on the page: " + step.thought);

  // A point that really hits the target: near its centre, else anywhere it is not covered.
  const box = step.element.getBoundingClientRect();
  const hits = (x, y) => {
    const top = document.elementFromPoint(x, y);
    return top !== null && (step.element.contains(top) || top.contains(step.element) && top.tagName === "LABEL");
  };
  const spread = (size) => Math.min(size / 2, 6);
  let x = Math.round(box.left + box.width / 2 + (u - 0.5) * spread(box.width));
  let y = Math.round(box.top + box.height / 2 + (v - 0.5) * spread(box.height));
  if (!hits(x, y)) {
    const points = [];
    for (let py = Math.ceil(box.top) + 1; py < box.bottom - 1; py += 2) {
      for (let px = Math.ceil(box.left) + 1; px < box.right - 1; px += 2) {
        if ([[0, 0], [2, 0], [-2, 0], [0, 2], [0, -2]].every(([dx, dy]) => hits(px + dx, py + dy))) points.push([px, py]);
      }
    }
    if (points.length === 0) throw new Error("the target is covered: " + step.thought);
    [x, y] = points[Math.floor(u * points.length)];
  }
  return { kind: "click", thought: step.thought, ...onScreen(x, y) };
}
