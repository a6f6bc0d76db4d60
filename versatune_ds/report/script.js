"use strict";
// One step for the whole page: the cursor of every chart and the values in every legend follow it. Everything works
// by pointer, touch and keyboard; without this script the page shows everything at the last step.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const digits = { weight: 4, loss: 4, seconds: 4, epochs: 2 };

  function text(value, kind) {
    if (value === null || value === undefined) return "–";
    if (kind === "share") return `${(100 * value).toFixed(2)}%`;
    if (kind === "count") return Math.round(value).toLocaleString("en-US");
    if (kind === "rate") return String(Number(value.toPrecision(3)));
    if (kind === "change") return (value < 0 ? "" : "+") + value.toFixed(4);
    return value.toFixed(digits[kind]);
  }

  // ---- the step -------------------------------------------------------------------------------------------------
  const slider = document.getElementById("step");
  const sliderText = document.getElementById("step-text");
  const plots = all(".plot");
  const outputs = all("output[data-of]");
  const decisions = all(".decision");
  slider.max = data.last_step;

  // The last point at or before a step, the first one where there is none.
  function indexAt(steps, step) {
    let low = 0, high = steps.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (steps[middle] <= step) low = middle; else high = middle - 1;
    }
    return low;
  }

  function valueText(chart, line, step) {
    const index = indexAt(chart.steps, step);
    const error = line.errors && line.errors[index];
    return text(line.values[index], chart.kind) + (error ? ` ± ${text(error, chart.kind)}` : "");
  }

  function decisionsAt(step) {
    const found = new Map();
    for (const element of decisions) {
      if (Number(element.dataset.step) <= step) found.set(element.closest(".run").id, element);
    }
    return [...found.values()];
  }

  function showStep(step) {
    step = Math.min(Math.max(Math.round(step), 0), data.last_step);
    slider.value = step;
    for (const plot of plots) {
      const chart = data.charts[plot.dataset.chart];
      const own = Math.min(step, chart.last);
      plot.classList.add("has-cursor");
      plot.querySelector(".cursor").style.left = `${(100 * own) / Math.max(chart.end, 1)}%`;
      plot.setAttribute("aria-valuenow", own);
      const values = chart.lines.map((line) => `${line.name} ${valueText(chart, line, own)}`);
      plot.setAttribute("aria-valuetext", `step ${own}: ${values.join(", ")}`);
    }
    for (const output of outputs) {
      const chart = data.charts[output.dataset.of];
      output.textContent = valueText(chart, chart.lines[output.dataset.line], Math.min(step, chart.last));
    }
    const now = decisionsAt(step);
    decisions.forEach((element) => element.classList.toggle("is-now", now.includes(element)));
    const why = now.length === 1 ? `: ${now[0].querySelector(".reason").textContent}` : "";
    sliderText.textContent = `${step.toLocaleString("en-US")}${why}`;
    slider.setAttribute("aria-valuetext", `step ${sliderText.textContent}`);
  }

  slider.addEventListener("input", () => showStep(Number(slider.value)));

  function stepUnder(plot, event) {
    const box = plot.querySelector(".plot-area").getBoundingClientRect();
    const chart = data.charts[plot.dataset.chart];
    const wanted = ((event.clientX - box.left) / box.width) * chart.end;
    const index = indexAt(chart.steps, wanted);
    const next = chart.steps[index + 1];
    return next !== undefined && next - wanted < wanted - chart.steps[index] ? next : chart.steps[index];
  }

  function stepByKey(plot, key) {
    const { steps, last } = data.charts[plot.dataset.chart];
    const index = indexAt(steps, Number(slider.value));
    const far = Math.max(1, Math.round(steps.length / 10));
    const before = Number(slider.value) > last ? steps.length : index;
    const moves = {
      ArrowRight: index + 1, ArrowUp: index + 1, ArrowLeft: before - 1, ArrowDown: before - 1,
      PageUp: index + far, PageDown: before - far, Home: 0, End: steps.length - 1,
    };
    if (!(key in moves)) return null;
    return steps[Math.min(Math.max(moves[key], 0), steps.length - 1)];
  }

  for (const plot of plots) {
    plot.addEventListener("pointermove", (event) => showStep(stepUnder(plot, event)));
    plot.addEventListener("pointerdown", (event) => showStep(stepUnder(plot, event)));
    plot.addEventListener("keydown", (event) => {
      const step = stepByKey(plot, event.key);
      if (step === null) return;
      event.preventDefault();
      showStep(step);
    });
  }

  // ---- highlight one domain --------------------------------------------------------------------------------------
  let pinned = null;

  function focusDomain(slot) {
    document.body.classList.toggle("has-focus", slot !== null);
    for (const element of all(".series, .end")) element.classList.toggle("is-focus", element.dataset.slot === slot);
    for (const key of all(".key")) key.setAttribute("aria-pressed", String(pinned === key.dataset.slot));
  }

  for (const key of all(".key")) {
    key.addEventListener("click", () => {
      pinned = pinned === key.dataset.slot ? null : key.dataset.slot;
      focusDomain(pinned);
    });
    key.addEventListener("pointerenter", () => focusDomain(key.dataset.slot));
    key.addEventListener("pointerleave", () => focusDomain(pinned));
  }

  // ---- decisions: filter, link ----------------------------------------------------------------------------------
  for (const filters of all(".filters")) {
    const listed = all(".decision", filters.closest(".run"));
    const apply = () => {
      const wanted = all("select", filters).filter((select) => select.value !== "");
      for (const element of listed) {
        element.hidden = !wanted.every((select) => element.dataset[select.dataset.filter].includes(` ${select.value} `));
      }
      const shown = listed.filter((element) => !element.hidden).length;
      filters.querySelector(".count").textContent = `${shown} of ${listed.length} shown`;
    };
    filters.addEventListener("change", apply);
  }

  // #step=125 is the decision in force at a step of the first run; #run2-step125 a decision by its own link.
  function followLink() {
    const atStep = /^#step=(\d+)$/.exec(location.hash);
    const linked = atStep ? decisionsAt(Number(atStep[1]))[0] : document.getElementById(location.hash.slice(1));
    if (atStep) showStep(Number(atStep[1]));
    if (!linked || !linked.classList.contains("decision")) return;
    linked.hidden = false;
    linked.open = true;
    if (!atStep) showStep(Number(linked.dataset.step));
    linked.scrollIntoView({ block: "center" });
    linked.querySelector("summary").focus({ preventScroll: true });
  }

  window.addEventListener("hashchange", followLink);

  // ---- light and dark -------------------------------------------------------------------------------------------
  const button = document.getElementById("theme");
  const prefersDark = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (document.documentElement.dataset.theme || (prefersDark.matches ? "dark" : "light")) === "dark";
  const showTheme = () => { button.textContent = isDark() ? "Light" : "Dark"; };
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = isDark() ? "light" : "dark";
    showTheme();
  });
  prefersDark.addEventListener("change", showTheme);

  // ---- start ----------------------------------------------------------------------------------------------------
  for (const element of all(".needs-script")) element.hidden = false;
  showTheme();
  showStep(data.last_step);
  plots.forEach((plot) => plot.classList.remove("has-cursor"));
  followLink();
})();
