"use strict";
// Used by every page of palidecode. Text from files is only ever set as text, never as markup.
const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#cc79a7", "#e0560b", "#8c6bd1", "#4fd1c5", "#ff8fa3", "#a3d65c"];
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const one = (selector, root = document) => root.querySelector(selector);

function make(name, classes, text) {
  const element = document.createElement(name);
  if (classes) element.className = classes;
  if (text !== undefined) element.textContent = text;
  return element;
}

function shape(name, attributes, parent) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  parent.append(element);
  return element;
}

// A raw answer, its parse issues marked.
function answerLine(prompt, pieces) {
  const line = make("p", "answer", prompt ? `${prompt} → ` : "");
  const quote = make("q");
  for (const [text, odd, kinds] of pieces) {
    quote.append(odd ? make("mark", "", text) : text);
    for (const kind of kinds) quote.append(make("small", "", kind.replaceAll("_", " ")));
  }
  line.append(quote);
  return line;
}

const counted = (count, word) => `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;

// Further colours are 137.5° apart, so that neighbours differ.
const colour = (index) => COLOURS[index] ?? `hsl(${Math.round(index * 137.5) % 360} 65% 66%)`;

function tag(view, text, classes, picture, [x, y, width, height]) {
  // Above its box or, without room, below a small one and inside a large one.
  const above = y / picture.height >= 0.09;
  const under = !above && height / picture.height < 0.3;
  const tiny = Math.max(width / picture.width, height / picture.height) < 0.1;
  const where = above ? "" : under ? "under" : "inside";
  const label = make("span", `tag o ${classes} ${where} ${tiny ? "tiny" : ""}`, text);
  const share = (part) => `${Math.min(Math.max(part / picture.width, 0), 0.9) * 100}%`;
  if (x / picture.width > 0.6) label.style.right = share(picture.width - x - width);
  else label.style.left = share(x);
  const top = under ? y + height : y;
  label.style.top = `${Math.min(Math.max(top / picture.height, 0), 1) * 100}%`;
  view.append(label);
  return label;
}

// -- theme ---------------------------------------------------------------------------
const themes = ["auto", "light", "dark"];
const toggle = document.getElementById("theme");
let theme = "auto";
try { theme = localStorage.getItem("palidecode-theme") || "auto"; } catch { /* not saved */ }
function showTheme() {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  toggle.textContent = `◐ ${theme}`;
  toggle.setAttribute("aria-label", `Colour theme: ${theme}`);
}
toggle.addEventListener("click", () => {
  theme = themes[(themes.indexOf(theme) + 1) % themes.length];
  try { localStorage.setItem("palidecode-theme", theme); } catch { /* not saved */ }
  showTheme();
});
showTheme();
