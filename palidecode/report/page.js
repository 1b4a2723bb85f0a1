// Text from files is only ever set as text, never as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const KINDS = ["ok", "localisation", "class", "both", "duplicate", "background", "ignored", "missed", "found"];
  const STATES = ["", "missed", "crowd"];
  const [NEITHER, ONLY_A, ONLY_B] = [1, 3, 4];  // states of an object of a comparison
  const CHUNK = 24;
  const CROWDED = 12;  // objects; from there on, cards leave out the labels of tiny ones

  // -- the address: filters and the open picture, so that a link leads to them -----------
  const address = () => new URLSearchParams(location.hash.slice(1));
  function setAddress(entries) {
    const state = new URLSearchParams(Object.entries(entries).filter(([, value]) => value));
    history.replaceState(null, "", `#${state}`);
  }
  const setPicture = (picture) => setAddress({ ...Object.fromEntries(address()), picture });

  // -- tabs and sections ---------------------------------------------------------------
  const panels = all(".panel");
  const tabs = all("[role=tab]");
  const shownPanel = () => panels.find((panel) => !panel.hidden);
  const galleries = {};
  function choose(kind, byHand = true) {
    for (const panel of panels) panel.hidden = panel.dataset.kind !== kind;
    for (const tab of tabs) {
      const on = tab.dataset.kind === kind;
      tab.setAttribute("aria-selected", on);
      tab.tabIndex = on ? 0 : -1;
      if (on && byHand) tab.focus();
    }
    if (byHand) galleries[kind].save();
    dispatchEvent(new Event("resize"));
  }
  tabs.forEach((tab, index) => {
    tab.addEventListener("click", () => choose(tab.dataset.kind));
    tab.addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) choose(tabs[(index + step + tabs.length) % tabs.length].dataset.kind);
    });
  });
  for (const link of all("[data-to]")) {
    link.addEventListener("click", (event) => {
      event.preventDefault();
      const section = one(`[data-id=${link.dataset.to}]`, shownPanel());
      section.tabIndex = -1;
      section.scrollIntoView();
      section.focus({ preventScroll: true });
    });
  }

  // -- tables --------------------------------------------------------------------------
  function sortable(table) {
    const heads = all("thead th", table);
    const body = table.tBodies[0];
    heads.forEach((head, column) => {
      one("button", head).addEventListener("click", () => {
        const before = head.getAttribute("aria-sort");
        const words = column === 0;
        const up = before === "none" ? words : before === "descending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        const keyed = [...body.rows].map((row) => {
          const cell = row.cells[column];
          return [words ? cell.textContent : parseFloat(cell.dataset.v), row];
        });
        keyed.sort(([a], [b]) => {
          if (words) return up ? a.localeCompare(b) : b.localeCompare(a);
          // Rows without a value come last in either order.
          if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
          return up ? a - b : b - a;
        });
        body.append(...keyed.map(([, row]) => row));
      });
    });
  }

  // Say how many rows of a table are below the edge of its frame.
  function moreBelow(table, note) {
    const frame = table.parentElement;
    function count() {
      const edge = frame.getBoundingClientRect().bottom;
      const rows = [...table.tBodies[0].rows].filter((row) => !row.hidden);
      const hidden = rows.filter((row) => row.getBoundingClientRect().bottom > edge + 2).length;
      note.textContent = hidden ? `↓ ${hidden} more below: scroll the table` : "";
    }
    frame.addEventListener("scroll", count);
    addEventListener("resize", count);
    count();
    return count;
  }

  // -- pictures ------------------------------------------------------------------------
  function drawObject(svg, row, classes, at, title) {
    const [x, y, width, height, outline] = row.slice(at);
    const group = shape("g", { class: `o ${classes}` }, svg);
    shape("title", {}, group).textContent = title;
    if (outline) shape("path", { class: "mask", d: outline }, group);
    const box = { x, y, width: Math.max(width, 0), height: Math.max(height, 0) };
    shape("rect", { class: "halo", ...box }, group);
    shape("rect", { class: "box", ...box }, group);
    return group;
  }

  function frame(picture, side) {
    const outer = make("div", "frame");
    const broad = picture.width >= picture.height;
    const view = make("div", `view ${side} ${broad ? "broad" : "high"}`);
    view.style.aspectRatio = `${picture.width} / ${picture.height}`;
    if (picture.thumb !== null) {
      const image = make("img");
      image.alt = "";
      if (data.beside) image.loading = "lazy";
      image.src = `${data.beside ? "" : "data:image/webp;base64,"}${data.thumbs[picture.thumb]}`;
      view.append(image);
    }
    const svg = shape("svg", { viewBox: `0 0 ${picture.width} ${picture.height}` }, view);
    outer.append(view);
    return [outer, view, svg];
  }

  const score = (value) => (value === null ? "" : value.toFixed(2));

  // A and B side by side, each with its predictions and the objects that it misses.
  function comparedPair(picture, classes, fits) {
    const two = make("div", "two");
    const groups = { truths: [], predictions: [], others: [] };
    for (const [word, list, lost] of [["A", "predictions", [NEITHER, ONLY_B]], ["B", "others", [NEITHER, ONLY_A]]]) {
      const [outer, view, svg] = frame(picture, "predicted");
      picture.truths.forEach((row, index) => {
        if (!lost.includes(row[1])) return;
        const look = `missed ${fits.truths.has(index) ? "" : "dim"}`;
        (groups.truths[index] ??= []).push(drawObject(svg, row, look, 2, `missed: ${classes[row[0]]}`));
        tag(view, `${classes[row[0]]} missed`, look, picture, row.slice(2));
      });
      picture[list].forEach((row, index) => {
        const look = `${KINDS[row[1]]} ${fits[list].has(index) ? "" : "dim"}`;
        const text = `${classes[row[0]]} ${score(row[2])}`.trim();
        groups[list].push([drawObject(svg, row, look, 5, `${text}: ${KINDS[row[1]]}`)]);
        tag(view, text, look, picture, row.slice(5));
      });
      const half = make("div", "half");
      half.append(make("span", "side", word), outer);
      two.append(half);
    }
    return [two, groups];
  }

  // Truth and prediction side by side; `fits` holds the rows that match the filters.
  function pair(picture, classes, fits) {
    if (data.compare) return comparedPair(picture, classes, fits);
    const crowded = picture.predictions.length > CROWDED ? "crowded" : "";
    const two = make("div", `two ${data.plain ? "single" : ""} ${crowded}`);
    const [left, leftView, leftSvg] = frame(picture, "truth");
    const [right, rightView, rightSvg] = frame(picture, "predicted");
    const about = new Set();
    picture.predictions.forEach((row, index) => {
      if (fits.predictions.has(index) && row[4] >= 0) about.add(row[4]);
    });
    const groups = { truths: [], predictions: [] };
    picture.truths.forEach((row, index) => {
      const dim = fits.truths.has(index) || about.has(index) ? "" : "dim";
      const look = `${STATES[row[1]]} ${dim}`;
      groups.truths.push([drawObject(leftSvg, row, look, 2, classes[row[0]])]);
      tag(leftView, classes[row[0]], look, picture, row.slice(2));
    });
    picture.predictions.forEach((row, index) => {
      const look = `${KINDS[row[1]]} ${fits.predictions.has(index) ? "" : "dim"}`;
      const text = `${classes[row[0]]} ${score(row[2])}`.trim();
      const group = drawObject(rightSvg, row, look, 5, data.plain ? text : `${text}: ${KINDS[row[1]]}`);
      const label = tag(rightView, text, look, picture, row.slice(5));
      if (data.plain) for (const part of [group, label]) part.style.setProperty("--c", colour(row[0]));
      groups.predictions.push([group]);
    });
    for (const [word, drawn] of data.plain ? [["", right]] : [["truth", left], ["prediction", right]]) {
      const half = make("div", "half");
      if (word) half.append(make("span", "side", word));
      half.append(drawn);
      two.append(half);
    }
    return [two, groups];
  }

  // The raw answers about a picture, their parse issues marked.
  function answers(picture) {
    const list = make("div", "answers");
    for (const [prompt, pieces] of picture.answers ?? []) {
      list.append(answerLine(prompt, pieces));
    }
    return list;
  }

  function describe(picture) {
    if (data.plain) {
      const odd = picture.issues ? `, ${counted(picture.issues, "parse issue")}` : "";
      return `${counted(picture.predictions.length, "object")}${odd}`;
    }
    if (data.compare) return `right in A alone ${picture.only[0]}, in B alone ${picture.only[1]}`;
    return `${picture.right} right, ${picture.wrong} wrong, ${picture.missed} missed`;
  }

  // -- gallery -------------------------------------------------------------------------
  function gallery(panel) {
    const { classes, pictures } = data.kinds[panel.dataset.kind];
    const section = one(".gallery", panel);
    const grid = one(".grid", section);
    const more = one("[data-more]", section);
    const fields = {};
    for (const field of all("[data-filter]", section)) fields[field.dataset.filter] = field;
    let shown = [];
    let drawn = 0;

    function wanted() {
      const number = (name, missing) => {
        const value = parseFloat(fields[name] ? fields[name].value : "");
        return Number.isNaN(value) ? missing : value;
      };
      return {
        class: fields.class.value, kind: fields.kind?.value ?? "",
        name: fields.name.value.trim().toLowerCase(), odd: fields.odd?.value ?? "",
        iou: [number("iou-from", 0), number("iou-to", 1)],
        score: [number("score-from", -Infinity), number("score-to", Infinity)],
      };
    }

    const isKind = (want, kind) =>
      !want || want === kind || (want === "wrong" && kind !== "ok" && kind !== "ignored");
    const between = (value, [from, to]) => value >= from && value <= to;

    // The rows of a picture that match the filters of a comparison.
    function comparedFitting(picture, want) {
      const state = { a: ONLY_A, b: ONLY_B, neither: NEITHER }[want.kind];
      const named = (number) => !want.class || classes[number] === want.class;
      const truths = new Set();
      picture.truths.forEach((row, index) => {
        if (named(row[0]) && (!want.kind || row[1] === state)) truths.add(index);
      });
      const fits = { truths, predictions: new Set(), others: new Set() };
      for (const list of ["predictions", "others"]) {
        picture[list].forEach((row, index) => {
          if (want.kind ? truths.has(row[4]) : named(row[0]) || truths.has(row[4])) fits[list].add(index);
        });
      }
      return fits;
    }

    // The rows of a picture that match the filters.
    function fitting(picture, want) {
      if (data.compare) return comparedFitting(picture, want);
      const scored = want.score[0] === -Infinity && want.score[1] === Infinity;
      const predictions = new Set();
      const truths = new Set();
      picture.predictions.forEach((row, index) => {
        const truth = row[4] >= 0 ? classes[picture.truths[row[4]][0]] : null;
        const named = !want.class || classes[row[0]] === want.class || truth === want.class;
        if (named && isKind(want.kind, KINDS[row[1]]) && between(row[3], want.iou)
            && (row[2] === null ? scored : between(row[2], want.score))) predictions.add(index);
      });
      picture.truths.forEach((row, index) => {
        const named = !want.class || classes[row[0]] === want.class;
        const kind = row[1] === 1 ? isKind(want.kind, "missed") : !want.kind;
        const whole = want.iou[0] <= 0 && scored;
        if (named && kind && whole && (row[1] === 1 || want.iou[1] >= 1)) truths.add(index);
      });
      return { predictions, truths };
    }

    function filter() {
      const want = wanted();
      const everything = !want.class && !want.kind && want.iou[0] <= 0 && want.iou[1] >= 1
        && want.score[0] === -Infinity && want.score[1] === Infinity;
      shown = [];
      pictures.forEach((picture, rank) => {
        const fits = fitting(picture, want);
        if (!everything && !fits.truths.size && (want.kind && data.compare || !fits.predictions.size && !fits.others?.size)) return;
        if (!picture.name.toLowerCase().includes(want.name) || (want.odd && !picture.issues)) return;
        let mistake = -Infinity;
        for (const index of fits.predictions) {
          const row = picture.predictions[index];
          if (KINDS[row[1]] !== "ok" && KINDS[row[1]] !== "ignored") mistake = Math.max(mistake, row[2] ?? 0);
        }
        shown.push({ picture, rank, fits, mistake });
      });
      const orders = {
        f1: (a, b) => a.rank - b.rank,
        best: (a, b) => (b.picture.f1 ?? -1) - (a.picture.f1 ?? -1) || b.rank - a.rank,
        mistake: (a, b) => (b.mistake === a.mistake ? a.rank - b.rank : b.mistake - a.mistake),
        name: (a, b) => a.picture.name.localeCompare(b.picture.name, undefined, { numeric: true }),
      };
      shown.sort(orders[fields.order.value]);
      const total = `${pictures.length.toLocaleString("en")} ${pictures.length === 1 ? "picture" : "pictures"}`;
      one(".count", section).textContent = everything && shown.length === pictures.length
        ? total
        : `${shown.length.toLocaleString("en")} of ${total} match${everything ? "" : "; other objects are dimmed"}`;
      grid.replaceChildren();
      drawn = 0;
      if (!shown.length) grid.append(make("p", "empty", "No picture matches these filters."));
      draw();
    }

    function draw() {
      const end = Math.min(drawn + CHUNK, shown.length);
      for (; drawn < end; drawn++) {
        const item = grid.appendChild(card(drawn));
        const text = one(".answers", item);
        text?.classList.toggle("cut", text.scrollHeight > text.clientHeight);
      }
      more.hidden = drawn >= shown.length;
      more.textContent = `Show more (${(shown.length - drawn).toLocaleString("en")} left)`;
    }

    function card(index) {
      const { picture, fits } = shown[index];
      const shot = make("div", "shot");
      const item = make("div");
      item.setAttribute("role", "listitem");
      shot.tabIndex = index === 0 ? 0 : -1;
      shot.setAttribute("role", "button");
      const f1 = picture.f1 == null ? "no objects" : `F1 ${picture.f1.toFixed(2)}`;
      const rated = data.plain || data.compare ? "" : `${f1}, `;
      shot.setAttribute("aria-label", `${picture.name}: ${rated}${describe(picture)}`);
      const caption = make("div", "caption");
      const name = make("span", "name", picture.name);
      name.title = picture.name;
      const tally = make("span", "tally");
      if (data.plain) tally.textContent = describe(picture);
      else if (data.compare) {
        const [a, b] = picture.counts.map(([right, wrong]) => `${right} ✓ ${wrong} ✗`);
        tally.append(make("b", "", "A "), `${a}   `, make("b", "", "B "), b);
      }
      else tally.append(make("b", "", f1), ` · ${picture.right} ✓  ${picture.wrong} ✗  ${picture.missed} missed`);
      caption.append(name, tally);
      shot.append(pair(picture, classes, fits)[0], caption);
      if (picture.answers) shot.append(answers(picture));
      item.append(shot);
      return item;
    }

    const shots = () => all(".shot", grid);
    function focus(index) {
      while (index >= drawn && drawn < shown.length) draw();
      const cards = shots();
      const next = Math.min(Math.max(index, 0), cards.length - 1);
      cards.forEach((shot, n) => { shot.tabIndex = n === next ? 0 : -1; });
      cards[next]?.focus();
    }
    function columns() {
      const cards = shots();
      const top = cards[0].getBoundingClientRect().top;
      const next = cards.findIndex((shot) => shot.getBoundingClientRect().top > top + 1);
      return next < 1 ? cards.length : next;
    }
    grid.addEventListener("keydown", (event) => {
      const index = shots().indexOf(event.target);
      if (index < 0 || event.altKey || event.ctrlKey || event.metaKey) return;
      if (event.key === "Enter" || event.key === " ") view(index);
      else {
        const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns(), ArrowUp: -columns(), Home: -index, End: shown.length };
        if (!(event.key in steps)) return;
        focus(index + steps[event.key]);
      }
      event.preventDefault();
    });
    grid.addEventListener("click", (event) => {
      const index = shots().indexOf(event.target.closest(".shot"));
      if (index >= 0) view(index);
    });
    const view = (index) => viewer.open(shown, index, classes, section.className, focus);

    for (const field of Object.values(fields)) {
      field.addEventListener("input", () => {
        filter();
        save();
      });
    }
    for (const button of all("[data-layer]", section)) {
      button.addEventListener("click", () => {
        const on = button.getAttribute("aria-pressed") !== "true";
        button.setAttribute("aria-pressed", on);
        section.classList.toggle(`no-${button.dataset.layer}`, !on);
      });
    }
    const usual = { "iou-from": "0", "iou-to": "1", order: "f1" };
    function reset(changes) {
      for (const [name, field] of Object.entries(fields)) {
        field.value = changes[name] ?? usual[name] ?? "";
      }
      filter();
    }
    function save() {
      const state = { tab: tabs.length ? panel.dataset.kind : "" };
      for (const [name, field] of Object.entries(fields)) {
        if (field.value !== (usual[name] ?? "")) state[name] = field.value;
      }
      setAddress(state);
    }
    function restore(state) {
      reset(state);
      const index = shown.findIndex((item) => item.picture.name === state.picture);
      if (index >= 0) view(index);
    }
    galleries[panel.dataset.kind] = { save, restore };
    one("[data-reset]", section).addEventListener("click", () => {
      reset({});
      save();
    });
    for (const button of all("[data-look-class], [data-look-kind]", panel)) {
      button.addEventListener("click", () => {
        reset({ class: button.dataset.lookClass, kind: button.dataset.lookKind });
        save();
        section.scrollIntoView();
        focus(0);
      });
    }
    more.addEventListener("click", () => {
      const index = drawn;
      draw();
      focus(index);
    });
    // Draw the next pictures shortly before they scroll into view.
    new IntersectionObserver((entries) => {
      if (entries.some((entry) => entry.isIntersecting) && drawn < shown.length && drawn) draw();
    }, { rootMargin: "300px" }).observe(more.parentElement);
    filter();
  }

  // -- one picture, large --------------------------------------------------------------
  const viewer = (() => {
    const dialog = document.getElementById("viewer");
    const body = one("tbody", dialog);
    let shown = [], index = 0, classes = [], back = () => {};

    // `cells` are texts; numbers stand right.
    function line(dot, word, cells, group) {  // `group`: the shapes that the row lights up
      const row = make("tr");
      const head = make("th");
      head.scope = "row";
      head.append(dot, word);
      row.append(head, ...cells.map((text) => make("td", /^[–0-9]/.test(text) ? "n" : "", text)));
      const light = (on) => () => { for (const part of group) part.classList.toggle("hot", on); };
      row.addEventListener("mouseenter", light(true));
      row.addEventListener("mouseleave", light(false));
      body.append(row);
    }

    // Zoom into all frames alike, around the point that is in their middle or at `share`.
    const ZOOMS = [1, 1.5, 2, 3, 4, 6, 8];
    let zoom = 1;
    const frames = () => all(".viewer-pair .frame", dialog);
    function zoomTo(next, share) {
      const [first] = frames();
      const at = share ?? {
        x: (first.scrollLeft + first.clientWidth / 2) / first.scrollWidth,
        y: (first.scrollTop + first.clientHeight / 2) / first.scrollHeight,
      };
      zoom = next;
      one(".viewer-pair", dialog).style.setProperty("--zoom", zoom);
      one("[data-zoomed]", dialog).textContent = `${zoom * 100}%`;
      for (const frame of frames()) {
        frame.classList.toggle("zoomed", zoom > 1);
        frame.tabIndex = zoom > 1 ? 0 : -1;  // its own keys scroll it
        frame.scrollLeft = at.x * frame.scrollWidth - frame.clientWidth / 2;
        frame.scrollTop = at.y * frame.scrollHeight - frame.clientHeight / 2;
      }
    }
    function zoomBy(by, share) {
      zoomTo(ZOOMS[Math.min(Math.max(ZOOMS.indexOf(zoom) + by, 0), ZOOMS.length - 1)], share);
    }
    function pointed(frame, event) {
      const box = frame.getBoundingClientRect();
      return {
        x: (frame.scrollLeft + event.clientX - box.left) / frame.scrollWidth,
        y: (frame.scrollTop + event.clientY - box.top) / frame.scrollHeight,
      };
    }
    function zoomable(frame) {
      let from = null;
      frame.setAttribute("role", "group");
      frame.setAttribute("aria-label", "Picture; when zoomed, drag or use its scroll keys");
      frame.addEventListener("scroll", () => {
        for (const other of frames()) {
          other.scrollTo(frame.scrollLeft, frame.scrollTop);
        }
      });
      frame.addEventListener("dblclick", (event) => zoomBy(zoom > 1 ? -ZOOMS.length : 2, pointed(frame, event)));
      frame.addEventListener("wheel", (event) => {
        if (!event.ctrlKey && !event.metaKey) return;  // pinching a touchpad is Ctrl and the wheel
        event.preventDefault();
        zoomBy(event.deltaY < 0 ? 1 : -1, pointed(frame, event));
      }, { passive: false });
      frame.addEventListener("pointerdown", (event) => {
        if (zoom === 1 || event.pointerType !== "mouse") return;  // a finger scrolls by itself
        from = [event.clientX + frame.scrollLeft, event.clientY + frame.scrollTop];
        frame.setPointerCapture(event.pointerId);
      });
      frame.addEventListener("pointermove", (event) => {
        if (from) frame.scrollTo(from[0] - event.clientX, from[1] - event.clientY);
      });
      frame.addEventListener("pointerup", () => { from = null; });
    }

    function show() {
      const { picture, fits } = shown[index];
      const [two, groups] = pair(picture, classes, fits);
      one(".viewer-pair", dialog).replaceChildren(two);
      frames().forEach(zoomable);
      zoomTo(1);
      one("[data-name]", dialog).textContent = picture.name;
      one("[data-place]", dialog).textContent = `${index + 1} of ${shown.length} · ${describe(picture)}`;
      body.replaceChildren();
      const dot = (kind) => make("i", `dot ${kind}`);
      for (const [list, side] of [["predictions", data.compare ? "A " : ""], ["others", "B "]]) (picture[list] ?? []).forEach((row, n) => {
        const [kind, value] = [KINDS[row[1]], score(row[2]) || "–"];
        if (data.plain) {
          const mark = dot("");
          mark.style.background = colour(row[0]);
          line(mark, classes[row[0]], [value], groups[list][n]);
          return;
        }
        const truth = row[4] >= 0 ? classes[picture.truths[row[4]][0]] : "–";
        line(dot(kind), side + (kind === "ok" ? "right" : kind), [classes[row[0]], value, truth, row[3].toFixed(2)], groups[list][n]);
      });
      picture.truths.forEach((row, n) => {
        const side = data.compare ? { [NEITHER]: "A, B ", [ONLY_A]: "B ", [ONLY_B]: "A " }[row[1]] : row[1] === 1 ? "" : undefined;
        if (side !== undefined) line(dot("missed"), `${side}missed`, ["–", "–", classes[row[0]], "–"], groups.truths[n]);
      });
      one(".answers", dialog).replaceWith(answers(picture));
      setPicture(picture.name);
    }
    function step(by) {
      index = Math.min(Math.max(index + by, 0), shown.length - 1);
      show();
    }
    for (const button of all("[data-step]", dialog)) {
      button.addEventListener("click", () => step(Number(button.dataset.step)));
    }
    for (const button of all("[data-zoom]", dialog)) {
      button.addEventListener("click", () => zoomBy(Number(button.dataset.zoom)));
    }
    one("[data-close]", dialog).addEventListener("click", () => dialog.close());
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
    dialog.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey) return;
      const closer = { "+": 1, "=": 1, "-": -1, "0": -ZOOMS.length }[event.key];
      if (closer) zoomBy(closer);
      if (zoom > 1 && event.target.closest(".frame")) return;
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (by) { step(by); event.preventDefault(); }
    });
    dialog.addEventListener("close", () => {
      setPicture("");
      back(index);
    });
    return {
      open(some, at, names, look, after) {
        [shown, index, classes, back] = [some, at, names, after];
        dialog.className = look;  // the same layers as in the gallery
        show();
        if (!dialog.open) dialog.showModal();
      },
    };
  })();

  // -- start ---------------------------------------------------------------------------
  for (const panel of panels) {
    for (const table of all(".sortable", panel)) {
      sortable(table);
      const find = one("[data-find]", panel);
      const rows = table.tBodies[0].rows;
      const below = moreBelow(table, one("[data-below]", panel));
      find.addEventListener("input", () => {
        const text = find.value.trim().toLowerCase();
        for (const row of rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(text);
        below();
      });
    }
    const names = data.kinds[panel.dataset.kind].curves;
    const curves = all("[id*='-curve-']", panel);
    for (const curve of curves) {
      shape("title", {}, curve).textContent = names[Number(curve.id.split("-curve-")[1])];
    }
    one("[data-curves]", panel)?.addEventListener("input", (event) => {
      for (const curve of curves) {
        curve.classList.toggle("lit", event.target.value !== "" && curve.id.endsWith(`-curve-${event.target.value}`));
        if (curve.classList.contains("lit")) curve.parentNode.append(curve);
      }
    });
    gallery(panel);
  }
  function restore() {
    const state = Object.fromEntries(address());
    const kind = state.tab in galleries ? state.tab : panels[0].dataset.kind;
    choose(kind, false);
    galleries[kind].restore(state);
  }
  addEventListener("hashchange", restore);
  if (address().size) restore();
})();
