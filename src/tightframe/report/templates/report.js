"use strict";
// Draws every chart at the width of its place on the page, and again when that width changes.
(() => {
  const NARROW = 560;
  const OPTIONS = {
    mode: "vega-lite",
    ast: true, // interprets expressions instead of compiling them: the page forbids eval
    renderer: "svg",
    scaleFactor: { png: 2 },
    actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
  };

  // Every chart is panels in a grid. `usermeta.tightframe` holds `minHeight` for a matrix, whose cells stay square.
  function fitted(text, width) {
    const spec = JSON.parse(text);
    spec.config = spec.config || {};
    spec.config.axisY = { ...spec.config.axisY, labelLimit: Math.max(96, Math.min(300, 0.34 * width)) };
    if (width < NARROW) {
      spec.config.legend = { ...spec.config.legend, columns: 1, layout: { top: { direction: "vertical" } } };
      spec.config.axisX = { ...spec.config.axisX, labelLimit: 110 };
      spec.columns = 1;
    }
    return spec;
  }

  function resize(spec, width) {
    const { minHeight } = (spec.usermeta || {}).tightframe || {};
    (spec.params || []).filter((param) => param.name === "room").forEach((param) => (param.value = width));
    for (const panel of spec.concat) {
      panel.width = width;
      if (minHeight) panel.height = Math.max(minHeight, Math.min(panel.height, width));
    }
  }

  // Axes take a width that is known only once drawn, so charts are drawn twice: as a guess, then less what the guess
  // was too wide.
  async function draw(place, text, name) {
    const width = place.clientWidth;
    const spec = fitted(text, width);
    const options = { ...OPTIONS, downloadFileName: name };
    const columns = spec.columns || 1;
    const guess = width / columns - 60;
    resize(spec, Math.floor(guess));
    const first = await vegaEmbed(place, spec, options);
    const drawn = place.querySelector("svg.marks").viewBox.baseVal.width;
    resize(spec, Math.max(80, Math.floor(guess - (drawn - width) / columns)));
    first.finalize();
    return vegaEmbed(place, spec, options);
  }

  function keep(place) {
    const text = document.getElementById(place.dataset.spec).textContent;
    let width = 0, view = null, queue = Promise.resolve(), timer = 0;
    const redraw = () => {
      if (place.clientWidth === width || !place.clientWidth) return;
      width = place.clientWidth;
      queue = queue.then(async () => {
        if (view) view.finalize();
        view = await draw(place, text, place.dataset.spec);
        place.dataset.drawn = "yes";
      }).catch((error) => {
        place.innerHTML = '<p class="failed">This chart could not be drawn.</p>';
        console.error(error);
      });
    };
    redraw();
    addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(redraw, 150); });
  }

  document.querySelectorAll(".plot").forEach(keep);
  addEventListener("beforeprint", () => document.querySelectorAll("footer details").forEach((part) => (part.open = true)));
})();
