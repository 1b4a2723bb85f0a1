// The page of `palidecode serve`. Text of models and people is only ever set as text.
(() => {
  const byId = (id) => document.getElementById(id);
  const info = JSON.parse(byId("data").textContent);
  let model = info.model?.name;
  let classes = info.model?.classes[model] ?? [];
  const MOST_KEPT = 40;  // answers of this visit
  const MOST_CHIPS = 1500;  // more would make the page slow

  let shown = null;  // the answer on the page, see `blank`
  let running = null;  // the AbortController of the request in progress
  let mode = info.model ? "ask" : "read";
  const visit = [];
  const hues = new Map(classes.map((name, index) => [name, index]));

  const blank = (kind, picture, prompt) => ({
    kind, picture, prompt, tokens: [], objects: [], issues: [], seconds: null, coco: null, state: "", text: "", codec: null,
  });
  const hue = (label) => {
    if (!hues.has(label)) hues.set(label, hues.size);
    return colour(hues.get(label));
  };
  const threshold = () => Number(byId("threshold").value);
  const isShown = (object) => object.score == null || object.score >= threshold();

  function say(id, text) {
    byId(id).textContent = text;
    byId(id).hidden = !text;
  }
  const fail = (error) => say("failed", error instanceof TypeError
    ? "The server can't be reached: is it still running?" : error?.message ?? error);

  // -- the drawing -----------------------------------------------------------------------
  const view = byId("view");
  const drawing = byId("drawing");
  const groups = new Map();  // object → its shapes and its label on the picture

  function showPicture(picture) {
    byId("picture").hidden = !picture.url;
    if (picture.url) byId("picture").src = picture.url;
    else byId("picture").removeAttribute("src");
    view.style.setProperty("--ratio", picture.width / picture.height);
    drawing.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
    byId("named").title = byId("named").textContent = `${picture.name} · ${picture.width} × ${picture.height}`;
    for (const button of all("#scenes button")) {
      button.setAttribute("aria-pressed", button.dataset.scene === picture.scene);
    }
  }

  function drawBox(parent, classes, [x1, y1, x2, y2]) {
    const at = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    shape("rect", { class: `halo ${classes}`, ...at }, parent);
    shape("rect", { class: `box ${classes}`, ...at }, parent);
  }

  function drawObject(object, picture) {
    const group = shape("g", { class: "o" }, drawing);
    group.style.setProperty("--c", hue(object.label));
    if (object.mask) shape("path", { class: "mask", d: ringPath(object.mask.polygons) }, group);
    drawBox(group, "", object.box);
    const [x1, y1, x2, y2] = object.box;
    const text = captionOf(object);
    const label = tag(view, text, "", picture, [x1, y1, x2 - x1, y2 - y1]);
    label.style.setProperty("--c", hue(object.label));
    groups.set(object, [group, label]);
  }

  function draw() {
    groups.clear();
    drawing.replaceChildren();
    for (const label of all(".tag", view)) label.remove();
    for (const object of shown.objects) if (isShown(object)) drawObject(object, shown.picture);
    drawDraft();
  }

  // A line across the picture at an edge of a box, and the edge itself.
  function drawEdge(parent, edge, at, [x1, y1, x2, y2], { width, height }) {
    const flat = edge % 2 === 0;
    const line = (classes, from, to) => shape("line", {
      class: classes,
      ...(flat ? { x1: from, x2: to, y1: at, y2: at } : { y1: from, y2: to, x1: at, x2: at }),
    }, parent);
    line("guide", 0, flat ? width : height);
    if (x2 > x1 || y2 > y1) line("edge", flat ? x1 : y1, flat ? x2 : y2);
  }

  function drawCells(parent, [x1, y1, x2, y2], isOn) {
    const [width, height] = [(x2 - x1) / GRID, (y2 - y1) / GRID];
    for (let cell = 0; cell < GRID * GRID; cell++) {
      const [row, column] = [Math.floor(cell / GRID), cell % GRID];
      shape("rect", { class: `cell ${isOn(cell)}`, x: x1 + column * width, y: y1 + row * height, width, height }, parent);
    }
  }

  // What is written so far of an object that isn't complete.
  function drawDraft() {
    one(".draft", drawing)?.remove();
    if (shown.state !== "writing") return;
    const first = shown.objects.length ? shown.objects.at(-1).last : 0;
    const open = shown.tokens.slice(first);
    const locs = open.filter((token) => token.kind === "loc").slice(0, 4);
    if (!locs.length) return;
    const { picture } = shown;
    const at = locs.map((token, n) => token.value / DIVISOR * (n % 2 ? picture.width : picture.height));
    const group = shape("g", { class: "draft o" }, drawing);
    if (locs.length < 4) {
      at.forEach((value, edge) => drawEdge(group, edge, value, [0, 0, 0, 0], picture));
      return;
    }
    const box = [at[1], at[0], at[3], at[2]];
    const segs = open.filter((token) => token.kind === "seg").length;
    drawBox(group, "", box);
    if (segs) drawCells(group, box, (cell) => (cell < segs ? "on" : ""));
  }

  // -- lights: what a token or an object is on the picture ---------------------------------
  function unlight() {
    one(".light", drawing)?.remove();
    for (const lit of all(".hot, .lit", byId("main"))) lit.classList.remove("hot", "lit");
    drawing.classList.remove("lighting");
    byId("about").textContent = "";
  }

  function lightObject(object) {
    unlight();
    if (!groups.has(object)) return;
    drawing.classList.add("lighting");
    for (const part of groups.get(object)) part.classList.add("hot");
    for (const item of all(`[data-object="${shown.objects.indexOf(object)}"]`)) item.classList.add("lit");
  }

  function lightToken(index) {
    const token = shown.tokens[index];
    const object = shown.objects[token.object];
    if (object) lightObject(object);
    else unlight();
    byId("about").textContent = describe(index);
    one(`[data-token="${index}"]`)?.classList.add("hot");
    if (!object || !groups.has(object)) return;
    const group = shape("g", { class: "light o" }, drawing);
    group.style.setProperty("--c", hue(object.label));
    const [x1, y1, x2, y2] = object.box;
    const order = orderOf(index);
    if (token.kind === "loc" && order < 4) drawEdge(group, order, [y1, x1, y2, x2][order], object.box, shown.picture);
    if (token.kind === "seg" && order < GRID * GRID) drawCells(group, object.box, (cell) => (cell === order ? "on" : ""));
  }

  // The rank of a token among those of its kind in its object.
  function orderOf(index) {
    const { kind, object } = shown.tokens[index];
    const before = shown.tokens.slice(shown.objects[object].first, index);
    return before.filter((token) => token.kind === kind).length;
  }

  function describe(index) {
    const token = shown.tokens[index];
    const object = shown.objects[token.object];
    const chance = token.logprob == null ? "" : ` · probability ${share(token.logprob).toFixed(3)}`;
    const odd = (oddTokens().get(index) ?? []).map((kind) => ` · ${kind}`).join("");
    const part = object ? partOf(token, object, orderOf(index)) : "outside of the objects";
    return `${spelled(token)}: ${part}${chance}${odd}`;
  }

  function partOf(token, object, order) {
    if (token.kind === "loc" && order < 4) {
      const [x1, y1, x2, y2] = object.box;
      const at = [y1, x1, y2, x2][order].toFixed(1);
      return `${EDGES[order]} edge of ${named(object)}, ${order % 2 ? "x" : "y"} = ${at} pixels`;
    }
    if (token.kind === "seg" && order < GRID * GRID) {
      const cell = `row ${Math.floor(order / GRID) + 1}, column ${order % GRID + 1}`;
      return `mask of ${named(object)}, code ${order + 1} of 16 (${cell} of its grid)`;
    }
    return token.kind === "word" ? `label of ${named(object)}` : `surplus, beside ${named(object)}`;
  }

  // -- tokens ----------------------------------------------------------------------------
  function addChip(index) {
    if (index >= MOST_CHIPS) {
      if (index === MOST_CHIPS) byId("tokens").append(make("p", "small muted", `Only ${counted(MOST_CHIPS, "token")} are shown.`));
      return;
    }
    const token = shown.tokens[index];
    const before = shown.tokens[index - 1];
    const box = byId("tokens");
    if (!before || (token.kind === "loc" && before.kind !== "loc")) box.append(make("div", "group"));
    const chip = make("button", `chip ${token.kind}`);
    chip.type = "button";
    chip.dataset.token = index;
    chip.tabIndex = index === 0 ? 0 : -1;
    chip.append(make("code", "", spelled(token)));
    if (token.logprob != null) {
      const chance = share(token.logprob);
      chip.append(make("small", "", chance > 0.995 ? "1.0" : chance.toFixed(2).slice(chance < 0.995 ? 1 : 0)));
      chip.style.setProperty("--p", chance);
      chip.classList.toggle("unsure", chance < 0.5);
    }
    const group = box.lastElementChild;
    const kind = token.kind === "word" ? "words" : "codes";
    if (!group.lastElementChild?.classList.contains(kind)) group.append(make("div", kind));
    group.lastElementChild.append(chip);
  }

  // Give the chips of an object its colour and its index.
  function claimChips(number) {
    const object = shown.objects[number];
    for (let index = object.first; index < object.last; index++) {
      shown.tokens[index].object = number;
      const chip = one(`[data-token="${index}"]`);
      if (!chip) continue;
      chip.dataset.object = number;
      chip.closest(".group").style.setProperty("--c", hue(object.label));
    }
  }

  byId("tokens").addEventListener("pointerover", (event) => {
    const chip = event.target.closest(".chip");
    if (chip) lightToken(Number(chip.dataset.token));
  });
  byId("tokens").addEventListener("pointerleave", unlight);
  byId("tokens").addEventListener("focusin", (event) => {
    for (const chip of all(".chip[tabindex='0']")) chip.tabIndex = -1;
    event.target.tabIndex = 0;
    lightToken(Number(event.target.dataset.token));
  });
  byId("tokens").addEventListener("focusout", unlight);
  byId("tokens").addEventListener("keydown", (event) => {
    const chips = all(".chip");
    const at = chips.indexOf(document.activeElement);
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -at, End: chips.length };
    if (!(event.key in steps) || at < 0) return;
    chips[Math.min(Math.max(at + steps[event.key], 0), chips.length - 1)].focus();
    event.preventDefault();
  });

  // -- the list of objects and the state -----------------------------------------------------
  function listObjects() {
    byId("objects").replaceChildren(...shown.objects.map((object, number) => {
      const item = make("li");
      const button = make("button", "found");
      button.type = "button";
      button.dataset.object = number;
      button.classList.toggle("below", !isShown(object));
      button.style.setProperty("--c", hue(object.label));
      button.append(make("i", "dot"), make("span", "name", named(object)));
      if (object.score != null) {
        const bar = make("i", "bar-of");
        bar.style.setProperty("--v", object.score);
        button.append(bar, make("b", "", object.score.toFixed(2)));
      }
      button.addEventListener("pointerenter", () => lightObject(object));
      button.addEventListener("pointerleave", unlight);
      button.addEventListener("focus", () => lightObject(object));
      button.addEventListener("blur", unlight);
      button.addEventListener("click", () => one(`[data-token="${object.first}"]`)?.focus());
      item.append(button);
      return item;
    }));
  }

  function stateText() {
    const { state, tokens, objects, seconds } = shown;
    if (state === "asking") return "Asking …";
    if (state === "writing") return `Writing … ${counted(tokens.length, "token")}`;
    if (!tokens.length && shown.kind === "read") return "Paste an answer: its objects appear here.";
    if (!tokens.length && state === "stopped") return "Stopped.";
    const hidden = objects.filter((object) => !isShown(object)).length;
    const parts = [objects.length || VERBS.indexOf(verbOf(shown.prompt)) < 2 ? counted(objects.length, "object") : "text"];
    if (hidden) parts.push(`${hidden} below ${threshold().toFixed(2)}`);
    parts.push(counted(tokens.length, "token"));
    if (shown.issues.length) parts.push(counted(shown.issues.length, "parse issue"));
    if (seconds != null) parts.push(`${seconds.toFixed(2)} s`);
    if (state === "stopped") parts.push("stopped");
    return parts.join(" · ");
  }

  function showState() {
    byId("state").textContent = stateText();
    const busy = ["asking", "writing"].includes(shown.state);
    if (byId("go")) {
      byId("go").textContent = busy ? "Stop" : "Ask";
      byId("go").classList.toggle("stop", busy);
    }
    byId("easel").classList.toggle("busy", busy);
    byId("save-coco").disabled = !shown.coco && !(shown.kind === "read" && shown.text.trim());
    byId("save-png").disabled = busy || !shown.tokens.length;
  }

  const rawText = () => (shown.kind === "read" ? shown.text : shown.tokens.map((token) => token.text).join(""));

  function rawPieces() {
    const starts = [0];
    if (shown.kind === "ask") for (const { text } of shown.tokens) starts.push(starts.at(-1) + [...text].length);
    const place = (at) => (shown.kind === "ask" ? starts[at] : at);
    return cutAt(rawText(), shown.issues.map(({ kind, span: [start, stop] }) => [kind, place(start), place(stop)]));
  }

  function showRaw() {
    byId("raw").replaceChildren(answerLine(shown.prompt, rawPieces()));
    byId("copy").hidden = !shown.tokens.length;
    const issues = shown.issues.length;
    const fine = shown.state === "done" && shown.tokens.length ? "Well-formed: nothing odd in it." : "";
    byId("odd").textContent = issues ? `${counted(issues, "parse issue")}, marked where ${issues === 1 ? "it is" : "they are"}.` : fine;
  }

  // Show an answer as it is now, from the beginning.
  function show(answer) {
    shown = answer;
    showPicture(answer.picture);
    byId("tokens").replaceChildren();
    answer.tokens.forEach((_, index) => addChip(index));
    answer.objects.forEach((_, number) => claimChips(number));
    byId("sub-bin-label").hidden = answer.kind === "read";
    update();
  }

  // Kinds of the issues at each token that has any.
  function oddTokens() {
    const odd = new Map();
    shown.tokens.forEach((token, index) => {
      const [start, stop] = shown.kind === "read" ? [token.start, token.stop] : [index, index + 1];
      const here = shown.issues.filter(({ span: [first, last] }) => first < stop && (last > start || first === start));
      if (here.length) odd.set(index, here.map(({ kind }) => kind.replaceAll("_", " ")));
    });
    return odd;
  }

  function update() {
    unlight();
    draw();
    listObjects();
    showState();
    showRaw();
    byId("slide").hidden = shown.kind === "read" && !shown.objects.some(({ score }) => score != null);
    const odd = oddTokens();
    for (const chip of all(".chip")) chip.classList.toggle("odd", odd.has(Number(chip.dataset.token)));
    for (const button of all("#history button")) button.setAttribute("aria-pressed", visit[button.dataset.index] === shown);
  }

  // -- asking the model --------------------------------------------------------------------
  // Ask the server; one line of what is wrong where it refuses.
  async function call(path, options = {}) {
    const key = sessionStorage.getItem("palidecode-key");
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const response = await fetch(`v1/${path}`, { ...options, headers });
    if (response.ok) return response;
    let message = "";
    try { message = (await response.json()).error?.message ?? ""; } catch { /* not JSON */ }
    throw new Error(message || `the server answered ${response.status} ${response.statusText}`);
  }

  const receive = {
    token(answer, { text, logprob }) {
      answer.state = "writing";
      answer.tokens.push(tokenOf(text, { logprob }));
      if (shown !== answer) return;
      addChip(answer.tokens.length - 1);
      drawDraft();
      showState();
      showRaw();
    },
    object(answer, { label, box, score, mask, tokens: [first, last] }) {
      answer.objects.push({ label, box, score, mask, first, last });
      if (shown !== answer) return;
      claimChips(answer.objects.length - 1);
      draw();
      listObjects();
    },
    end(answer, { issues, seconds, coco }) {
      Object.assign(answer, { issues, seconds, coco, state: "done" });
    },
    error(answer, { message }) {
      throw new Error(message);
    },
  };

  function stop() {
    running?.abort();
    running = null;
  }

  async function ask() {
    stop();
    fail("");
    const prompt = byId("prompt").value.trim();
    if (!prompt) {
      fail("Type a prompt, for instance: segment cat ; dog");
      return;
    }
    const control = running = new AbortController();
    const { picture } = shown;
    const answer = blank("ask", picture, prompt);
    answer.state = "asking";
    show(answer);
    const form = new FormData();
    if (picture.scene) form.append("scene", picture.scene);
    else form.append("image", picture.blob, picture.name);
    form.append("model", model);
    form.append("prompt", prompt);
    form.append("options", JSON.stringify({ sub_bin: byId("sub-bin").checked }));
    try {
      const response = await call("stream", { method: "POST", body: form, signal: control.signal });
      for await (const [name, value] of events(response)) receive[name]?.(answer, value);
      if (answer.state !== "done") throw new Error("the server ended the answer too early");
    } catch (error) {
      answer.state = "stopped";
      if (!control.signal.aborted) fail(error);
    }
    if (running === control) running = null;
    if (answer.state === "done" || answer.objects.length) remember(answer);
    if (shown === answer) update();
  }

  // -- the prompt --------------------------------------------------------------------------
  const verbOf = (prompt) => VERBS.find((verb) => prompt.trimStart().toLowerCase().startsWith(verb)) ?? "";
  const namesOf = (prompt) => prompt.trim().slice(verbOf(prompt).length).split(";").map((name) => name.trim()).filter(Boolean);
  let lastNames = classes;

  function setPrompt(verb, names) {
    if (verb !== "caption" && names.length) lastNames = names;
    byId("prompt").value = verb === "caption" ? "caption en" : `${verb} ${names.join(" ; ")}`.trim();
    showPrompt();
  }

  function showPrompt() {
    const { value } = byId("prompt");
    const [verb, names] = [verbOf(value), verbOf(value) === "caption" ? [] : namesOf(value)];
    for (const button of all("[data-verb]")) button.setAttribute("aria-pressed", button.dataset.verb === verb);
    for (const chip of all("#names button")) {
      const on = chip.dataset.name ? names.includes(chip.dataset.name) : classes.every((name) => names.includes(name));
      chip.setAttribute("aria-pressed", on);
    }
  }

  function offerNames() {
    const toggle = (text, name) => {
      const chip = make("button", "", text);
      chip.type = "button";
      if (name) {
        chip.dataset.name = name;
        chip.style.setProperty("--c", hue(name));
      }
      chip.addEventListener("click", () => {
        const { value } = byId("prompt");
        const verb = verbOf(value).replace("caption", "") || "segment";
        const names = verbOf(value) === "caption" ? [] : namesOf(value);
        const on = chip.getAttribute("aria-pressed") === "true";
        if (!name) setPrompt(verb, on ? [] : classes);
        else setPrompt(verb, on ? names.filter((other) => other !== name) : [...names, name]);
      });
      return chip;
    };
    byId("names").replaceChildren(...classes.map((name) => toggle(name, name)));
    if (classes.length > 1) byId("names").prepend(toggle("all"));
    byId("names").hidden = !classes.length;
    byId("finds").textContent = classes.length ? ` · finds these ${classes.length} things only` : "";
  }

  function useModel(name) {
    model = name;
    classes = info.model.classes[name];
    offerNames();
    if (classes.length) setPrompt(verbOf(byId("prompt").value).replace("caption", "") || "segment", classes);
    else showPrompt();
    if (shown.kind === "ask" && shown.prompt) ask();
  }

  // -- pictures ----------------------------------------------------------------------------
  async function load(blob, name, scene = "") {
    const url = URL.createObjectURL(blob);
    const image = new Image();
    image.src = url;
    try {
      await image.decode();
    } catch {
      URL.revokeObjectURL(url);
      throw new Error(`${name}: not a picture that this browser can show`);
    }
    return { url, blob, image, name, scene, width: image.naturalWidth, height: image.naturalHeight };
  }

  async function take(source) {
    fail("");
    try {
      const picture = await source;
      if (mode === "read") read(picture);
      else {
        shown = blank("ask", picture, "");
        await ask();
      }
    } catch (error) {
      fail(error);
    }
  }

  const known = new Map();
  async function scene(name) {
    if (!known.has(name)) {
      const response = await call(`scenes/${encodeURIComponent(name)}`);
      known.set(name, await load(await response.blob(), name, name));
    }
    return known.get(name);
  }

  function own(file) {
    if (file) take(load(file, file.name || "pasted picture"));
  }

  function offerScenes() {
    for (const name of info.scenes) {
      const button = make("button");
      button.type = "button";
      button.dataset.scene = name;
      button.setAttribute("aria-label", `Bundled picture ${name}`);
      const image = make("img");
      image.alt = "";
      scene(name).then(({ url }) => { image.src = url; }, fail);
      button.append(image);
      button.addEventListener("click", () => take(scene(name)));
      byId("scenes").append(button);
    }
  }

  const held = (event) => [...event.dataTransfer?.items ?? []].some((item) => item.kind === "file");
  let inside = 0;  // dragenter without its dragleave
  function over(count) {
    inside = Math.max(count, 0);
    byId("easel").classList.toggle("over", inside > 0);
  }
  addEventListener("dragenter", (event) => { if (held(event)) over(inside + 1); });
  addEventListener("dragleave", (event) => { if (held(event)) over(inside - 1); });
  addEventListener("dragover", (event) => { if (held(event)) event.preventDefault(); });
  addEventListener("drop", (event) => {
    over(0);
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    own(event.dataTransfer.files[0]);
  });
  addEventListener("paste", (event) => {
    const file = [...event.clipboardData?.files ?? []].find((item) => item.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    own(file);
  });
  byId("file").addEventListener("change", () => {
    own(byId("file").files[0]);
    byId("file").value = "";
  });

  // -- reading an answer without a model ------------------------------------------------------
  const sizeFields = [byId("width"), byId("height")];

  function canvas() {
    const [width, height] = sizeFields.map((field) => Math.min(Math.max(Math.round(Number(field.value)) || 1, 1), 100000));
    return { url: "", name: "no picture", scene: "", width, height };
  }

  let latest = 0;
  async function read(picture = shown.picture) {
    stop();
    const turn = ++latest;
    const text = byId("answer").value;
    for (const field of sizeFields) field.disabled = Boolean(picture.url);
    sizeFields[0].value = picture.width;
    sizeFields[1].value = picture.height;
    byId("blank").hidden = !picture.url;
    const answer = { ...blank("read", picture, ""), text, tokens: split(text), codec: byId("codec").value || null, state: "done" };
    try {
      const { images: [found], warnings } = await decoded(answer);
      if (turn !== latest) return;
      fail("");
      say("warned", warnings.join(" "));
      answer.objects = found.objects.map(({ tokens: [start, stop], ...object }) => {
        const first = answer.tokens.findIndex((token) => token.stop > start);
        const after = answer.tokens.findIndex((token) => token.start >= stop);
        return { ...object, first, last: after < 0 ? answer.tokens.length : after };
      });
      answer.issues = found.issues;
    } catch (error) {
      if (turn !== latest) return;
      fail(error);
    }
    show(answer);
  }

  async function decoded(answer, query = "") {
    const { picture, text, codec } = answer;
    const response = await call(`decode${query}`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ answers: text, sizes: [picture.width, picture.height], names: [picture.name], codec }),
    });
    return response.json();
  }

  let waiting = 0;
  function readSoon() {
    clearTimeout(waiting);
    waiting = setTimeout(() => read(shown.picture.url ? shown.picture : canvas()), 200);
  }
  for (const field of [byId("answer"), byId("codec"), ...sizeFields]) field.addEventListener("input", readSoon);
  byId("blank").addEventListener("click", () => {
    read(canvas());
    sizeFields[0].focus();
  });
  byId("answer").addEventListener("change", () => {
    if (shown.kind === "read" && shown.objects.length) remember(shown);
  });

  function offerSamples() {
    for (const { name, answer, scene: picture } of info.samples) {
      const button = make("button", "", name);
      button.type = "button";
      button.addEventListener("click", () => sample(answer, picture));
      byId("samples").append(button);
    }
  }

  async function sample(answer, picture) {
    byId("answer").value = answer;
    byId("codec").value = "palidecode-demo";
    await take(scene(picture));
  }

  // -- what is saved -----------------------------------------------------------------------
  function save(blob, name) {
    const link = make("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  }

  const stem = () => shown.picture.name.replace(/\.\w+$/, "").replace(/[^\w-]+/g, "_") || "answer";

  byId("save-png").addEventListener("click", () => {
    const side = Math.max(shown.picture.width, shown.picture.height);
    const width = shown.picture.width * Math.max(Math.min(8192 / side, 1), Math.min(900 / side, 4));
    const objects = shown.objects.filter(isShown);
    const [canvas, pen, scale] = paint(shown.picture, objects, hue, width);
    const size = Math.max(canvas.width / 48, 11);
    for (const object of objects) caption(pen, object, hue, scale, size);
    canvas.toBlob((blob) => save(blob, `${stem()}.png`), "image/png");
  });

  byId("save-coco").addEventListener("click", async () => {
    const answer = shown;
    try {
      const coco = answer.coco ?? await decoded(answer, "?format=coco");
      const annotations = coco.annotations.filter((_, number) => isShown(answer.objects[number]));
      save(new Blob([JSON.stringify({ ...coco, annotations })], { type: "application/json" }), `${stem()}.json`);
    } catch (error) {
      fail(error);
    }
  });

  byId("copy").addEventListener("click", async () => {
    await navigator.clipboard?.writeText(rawText());
    byId("copy").textContent = "Copied";
    setTimeout(() => { byId("copy").textContent = "Copy"; }, 1500);
  });

  // -- this visit ---------------------------------------------------------------------------
  function remember(answer) {
    if (visit.includes(answer)) return;
    visit.push(answer);
    if (visit.length > MOST_KEPT) visit.shift();
    byId("past").hidden = false;
    byId("history").replaceChildren(...visit.map((old, index) => {
      const button = make("button");
      button.type = "button";
      button.dataset.index = index;
      const [thumb] = old.thumb ??= paint(old.picture, old.objects.filter(isShown), hue, 240);
      thumb.setAttribute("aria-hidden", "true");
      const about = `${counted(old.objects.length, "object")} · ${old.picture.name}`;
      button.append(thumb, make("span", "name", titleOf(old)), make("span", "name muted", about));
      button.addEventListener("click", () => back(old));
      return button;
    }).reverse());
  }

  function titleOf({ kind, prompt }) {
    if (kind === "read") return "read";
    const names = namesOf(prompt);
    return names.length > 3 ? `${verbOf(prompt)} ${names.length} classes` : prompt;
  }

  function back(old) {
    stop();
    fail("");
    say("warned", "");
    choose(old.kind, false);
    if (old.kind === "ask") {
      byId("prompt").value = old.prompt;
      showPrompt();
    } else {
      byId("answer").value = old.text;
      byId("codec").value = old.codec ?? "";
    }
    show(old);
    byId("main").scrollIntoView();
  }

  // -- start ----------------------------------------------------------------------------------
  const tabs = all("[role=tab]");
  function choose(next, byHand = true) {
    mode = next;
    for (const tab of tabs) {
      const on = tab.dataset.mode === mode;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      if (on && byHand) tab.focus();
    }
    for (const name of ["ask", "read"]) if (byId(name)) byId(name).hidden = name !== mode;
    if (!byHand) return;
    const last = visit.findLast((answer) => answer.kind === mode);
    if (last) back(last);
    else if (mode === "read") sample(info.samples[0].answer, info.samples[0].scene);
  }
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => choose(tab.dataset.mode));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(tabs[(index + step + tabs.length) % tabs.length].dataset.mode);
    });
  });
  for (const button of all("[data-layer]")) {
    button.addEventListener("click", () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", on);
      view.classList.toggle(`no-${button.dataset.layer}`, !on);
    });
  }
  byId("threshold").addEventListener("input", () => {
    byId("threshold-out").textContent = threshold().toFixed(2);
    update();
  });
  byId("unlock")?.addEventListener("submit", (event) => {
    event.preventDefault();
    sessionStorage.setItem("palidecode-key", byId("key").value);
    location.reload();
  });
  byId("reading").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("keydown", (event) => { if (event.key === "Escape" && running) stop(); });

  function startAsking() {
    for (const button of all("[data-verb]")) {
      button.addEventListener("click", () => setPrompt(button.dataset.verb, verbOf(byId("prompt").value) === "caption" ? lastNames : namesOf(byId("prompt").value)));
    }
    byId("prompt").addEventListener("input", showPrompt);
    byId("prompt").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.isComposing) return;
      event.preventDefault();
      byId("question").requestSubmit();
    });
    byId("sub-bin").addEventListener("change", () => { if (shown.kind === "ask" && shown.prompt) ask(); });
    byId("question").addEventListener("submit", (event) => {
      event.preventDefault();
      if (running) stop();
      else ask();
    });
    byId("model")?.addEventListener("change", (event) => useModel(event.target.value));
    offerNames();
    setPrompt("segment", classes);
  }

  shown = blank(mode, canvas(), "");
  offerScenes();
  offerSamples();
  if (mode === "read") {
    show(shown);
    sample(info.samples[0].answer, info.samples[0].scene);
    return;
  }
  startAsking();
  show(shown);
  // A model that is known to find certain things shows them at once.
  if (classes.length) take(scene(info.first));
  else scene(info.first).then((picture) => show(blank("ask", picture, "")), fail);
})();
