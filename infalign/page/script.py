"""The page's one script: values under the pointer, and a slider that moves KL or N.

Every figure is whole without it. A figure's values stand beside its drawing as JSON: `panels` with
the box of each in the drawing's own units, the range of its horizontal axis, and `lines` of x, y
and, where there are any, low and high. Panels with the same axis share a slider; where an axis has
few places (`snap`), it stops at those. A figure of single points (`points`) has no slider: the
point under the pointer is named.
"""

from __future__ import annotations

SCRIPT = r"""
(() => {
  const make = (name, text, parent) => {
    const found = document.createElement(name);
    if (text !== undefined) found.textContent = text;
    if (parent) parent.append(found);
    return found;
  };
  const number = (value, digits) => value.toFixed(digits).replace("-", "−");
  const at = (line, x) => {
    if (line.single) return { x: line.x[0], y: line.y[0], i: 0 };
    if (x < line.x[0] || x > line.x.at(-1)) return null;
    let i = line.x.findIndex((value) => value >= x);
    if (line.x[i] === x || line.steps) return { y: line.y[line.steps ? Math.max(0, i - 1) : i], i };
    const share = (x - line.x[i - 1]) / (line.x[i] - line.x[i - 1]);
    return { y: line.y[i - 1] + share * (line.y[i] - line.y[i - 1]) };
  };
  const spread = (line, i, digits) =>
    i === undefined || !line.low ? "" :
      ` [${number(line.low[i], digits)}, ${number(line.high[i], digits)}]`;
  const place = (svg, event) => {
    const point = new DOMPoint(event.clientX, event.clientY);
    return point.matrixTransform(svg.getScreenCTM().inverse());
  };
  const within = (panel, p) =>
    p.x >= panel.left && p.x <= panel.right && p.y >= panel.top && p.y <= panel.bottom;

  const slider = (figure, svg, panels) => {
    const [first] = panels, box = make("div");
    box.className = "probe";
    const label = make("label", first.axis + " ", box), input = make("input", undefined, label);
    const shown = make("output", undefined, label), said = make("div", undefined, box);
    said.className = "said";
    input.type = "range";
    const from = Math.min(...panels.map((p) => p.from)), to = Math.max(...panels.map((p) => p.to));
    const snap = first.snap;
    Object.assign(input, snap ? { min: 0, max: snap.length - 1, step: 1 } :
      { min: from, max: to, step: "any" });
    const rulers = panels.map(() => {
      const line = document.createElementNS(svg.namespaceURI, "line");
      line.setAttribute("class", "ruler");
      svg.append(line);
      return line;
    });
    const move = () => {
      const x = snap ? snap[+input.value][0] : +input.value;
      shown.textContent = snap ? snap[+input.value][1] : number(x, to > 20 ? 0 : 2);
      input.setAttribute("aria-valuetext", shown.textContent);
      said.replaceChildren();
      panels.forEach((panel, i) => {
        const share = (x - panel.from) / (panel.to - panel.from), ruler = rulers[i];
        const across = panel.left + share * (panel.right - panel.left);
        ruler.style.display = share < 0 || share > 1 ? "none" : "";
        Object.entries({ x1: across, x2: across, y1: panel.top, y2: panel.bottom })
          .forEach(([name, value]) => ruler.setAttribute(name, value));
        const row = make("p", undefined, said);
        make("b", panel.title, row);
        for (const line of panel.lines) {
          const value = at(line, x);
          if (!value) continue;
          const item = make("span", undefined, row), swatch = make("i", undefined, item);
          swatch.style.background = `var(--${line.ink})`;
          item.append(`${line.name} ${number(value.y, panel.digits)}` +
            spread(line, value.i, panel.digits) +
            (line.single ? ` at ${number(value.x, 2)}` : ""));
        }
      });
    };
    input.addEventListener("input", move);
    svg.addEventListener("pointermove", (event) => {
      const p = place(svg, event), panel = panels.find((one) => within(one, p));
      if (!panel) return;
      const share = (p.x - panel.left) / (panel.right - panel.left);
      const x = panel.from + share * (panel.to - panel.from);
      if (snap) {
        const far = snap.map(([value]) => Math.abs(value - x));
        input.value = far.indexOf(Math.min(...far));
      } else input.value = x;
      move();
    });
    const mark = first.lines.find((line) => line.single);
    input.value = snap ? Math.floor(snap.length / 2) : mark ? mark.x[0] : (from + to) / 2;
    move();
    figure.append(box);
  };

  const points = (figure, svg, panel) => {
    const said = make("p");
    said.className = "probe said";
    said.textContent = "Point at a mark for its value.";
    svg.addEventListener("pointermove", (event) => {
      const p = place(svg, event);
      let best = null, far = 15;
      for (const line of panel.lines) line.px.forEach((x, i) => {
        const d = Math.hypot(p.x - x, p.y - line.py[i]);
        if (d < far) [best, far] = [[line, i], d];
      });
      if (!best) return;
      const [line, i] = best;
      said.textContent = `${line.name}: ${number(line.x[i], panel.digits)}` +
        spread(line, i, panel.digits);
    });
    figure.append(said);
  };

  for (const data of document.querySelectorAll("figure > script")) {
    const figure = data.parentElement, svg = figure.querySelector("svg");
    const probe = JSON.parse(data.textContent), groups = new Map();
    for (const panel of probe.panels) {
      if (panel.points) points(figure, svg, panel);
      else groups.set(panel.axis, [...(groups.get(panel.axis) ?? []), panel]);
    }
    for (const panels of groups.values()) slider(figure, svg, panels);
  }
})();
""".strip()
