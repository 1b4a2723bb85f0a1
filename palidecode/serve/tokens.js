// Tokens, events and drawings of the page of `palidecode serve`, apart from the page itself.
const DIVISOR = 1024;  // bins of loc tokens along a side; the default of the server's options
const EDGES = ["top", "left", "bottom", "right"];  // the order of loc tokens: y1, x1, y2, x2
const GRID = 4;  // sixteen mask codes are a 4 × 4 grid, row by row
const VERBS = ["detect", "segment", "caption"];

const share = (logprob) => Math.exp(logprob);
const named = (object) => object.label || "(no label)";
const captionOf = (object) => `${named(object)}${object.score == null ? "" : ` ${object.score.toFixed(2)}`}`;

const spelled = (token) => (token.text === "" ? "<eos>" : token.text.replaceAll(" ", "␣").replaceAll("\n", "⏎"));

function tokenOf(text, more) {
  const [, kind, digits] = /^<(loc|seg)(\d+)>$/.exec(text.trim()) ?? [];
  return { text, kind: kind ?? "word", value: digits === undefined ? null : Number(digits), ...more };
}

const TOKEN = String.raw`<(?:loc|seg)\d+>|<(?:eos|pad|bos)>`;
const PIECES = new RegExp(String.raw`${TOKEN}|\s*;\s*|(?:(?!${TOKEN}|\s*;)[^])+`, "gu");

// Tokens with their offsets in characters (not in UTF-16 units), as Python counts them.
function split(text) {
  const tokens = [];
  let at = 0;
  for (const [piece] of text.matchAll(PIECES)) {
    const start = at;
    at += [...piece].length;
    if (piece.trim()) tokens.push(tokenOf(piece, { start, stop: at }));
  }
  return tokens;
}

// Cut a text where spans begin and end: text, in a span, kinds of the spans that end there.
// Spans count characters, not UTF-16 units.
function cutAt(text, spans) {
  const letters = [...text];
  const cuts = [...new Set([0, letters.length, ...spans.flatMap(([, start, stop]) => [start, stop])])].sort((a, b) => a - b);
  return cuts.map((stop, n) => {
    const start = n ? cuts[n - 1] : 0;
    const odd = stop > start && spans.some(([, first, last]) => first <= start && stop <= last);
    return [letters.slice(start, stop).join(""), odd, spans.filter(([, , last]) => last === stop).map(([kind]) => kind)];
  });
}

// The server-sent events of a response: names and values.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const blocks = (text + value.replaceAll("\r", "")).split("\n\n");
    text = blocks.pop();
    for (const block of blocks) {
      const fields = { event: "message", data: "" };
      for (const line of block.split("\n")) {
        const [, name, rest] = /^(\w+): ?(.*)$/.exec(line) ?? [];
        if (name) fields[name] = rest;
      }
      if (fields.data) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}

const ringPath = (rings) => rings.map((ring) => {
  let path = "";
  for (let at = 0; at < ring.length; at += 2) path += `${at ? "L" : "M"}${ring[at]} ${ring[at + 1]}`;
  return `${path}Z`;
}).join("");

// Paint the picture and its objects; `width` in pixels.
function paint(picture, objects, ink, width) {
  const canvas = make("canvas");
  const scale = width / picture.width;
  canvas.width = Math.round(width);
  canvas.height = Math.max(Math.round(picture.height * scale), 1);
  const pen = canvas.getContext("2d");
  pen.fillStyle = "#2a3036";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  if (picture.image) pen.drawImage(picture.image, 0, 0, canvas.width, canvas.height);
  const line = Math.max(canvas.width / 320, 1.5);
  for (const object of objects) {
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.fillStyle = pen.strokeStyle = ink(object.label);
    if (object.mask) {
      const path = new Path2D(ringPath(object.mask.polygons));
      pen.globalAlpha = 0.38;
      pen.fill(path, "evenodd");
      pen.globalAlpha = 1;
      pen.lineWidth = line / scale / 2;
      pen.stroke(path);
    }
    pen.lineWidth = line / scale;
    const [x1, y1, x2, y2] = object.box;
    pen.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
  pen.resetTransform();
  return [canvas, pen, scale];
}

// Write an object's label above its box, or at the edge of the picture.
function caption(pen, object, ink, scale, size) {
  const text = captionOf(object);
  pen.font = `${size}px system-ui, sans-serif`;
  pen.textBaseline = "middle";
  const [width, height] = [pen.measureText(text).width + size * 0.6, size * 1.4];
  const x = Math.max(Math.min(object.box[0] * scale, pen.canvas.width - width), 0);
  const y = Math.max(object.box[1] * scale - height, 0);
  pen.fillStyle = ink(object.label);
  pen.fillRect(x, y, width, height);
  pen.fillStyle = "#111";
  pen.fillText(text, x + size * 0.3, y + height / 2);
}
