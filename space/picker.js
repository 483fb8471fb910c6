// A combobox over the catalogue (searched on the server), and the list of chosen titles below it.
// Titles enter the page as text nodes only.
const find = (selector) => element.querySelector(selector);
const input = find("input"), options = find("[role=listbox]"), chosen = find(".chosen");
const complaint = find(".complaint"), clear = find(".clear"), status = find("[role=status]");
let shown = [], active = -1, asked = 0, timer = null;

const make = (tag, className, text) => {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
};
const blank = (text) => !/[\p{L}\p{N}\p{P}\p{S}]/u.test(text);
const history = () => (Array.isArray(props.value) ? props.value : []);
const same = (a, b) => a.trim() === b.trim();

function domainMark(domain) {
  const mark = make("span", "domain");
  const dot = make("i", domain === null ? "dot typed" : "dot");
  if (domain !== null) dot.style.setProperty("--hue", props.hues[domain] ?? 0);
  dot.setAttribute("aria-hidden", "true");
  mark.append(dot, domain ?? props.typed);
  return mark;
}

function draw() {
  const items = history();
  chosen.replaceChildren(...items.map((item, place) => {
    const row = make("li", place < items.length - props.window ? "unread" : "");
    const text = make("div", "text");
    const title = make("span", "title", item.title);
    title.dir = "auto";
    const under = domainMark(item.domain);
    if (row.className) under.append(" · too old to be read");
    text.append(title, under);
    const remove = make("button", "remove", "×");
    remove.type = "button";
    remove.setAttribute("aria-label", `Remove ${item.title}`);
    remove.addEventListener("click", () => {
      const wasLast = place === history().length - 1;
      set(history().filter((_, other) => other !== place), `Removed ${item.title}.`);
      const buttons = chosen.querySelectorAll(".remove");
      (buttons[wasLast ? place - 1 : place] ?? input).focus();
    });
    row.append(make("span", "badge", String(place + 1)), text, remove);
    return row;
  }));
  clear.hidden = items.length === 0;
}

function showNewest() {
  chosen.scrollTop = chosen.scrollHeight;
}

function set(items, said) {
  props.value = items;
  status.textContent = said;
  complain("");
  draw();
}

function complain(text) {
  complaint.textContent = text;
  complaint.hidden = !text;
  input.toggleAttribute("aria-invalid", Boolean(text));
}

function add(item) {
  const title = item.title.trim();
  if (history().some((old) => same(old.title, title))) return complain(`“${title}” is in your list already.`);
  if (history().length >= props.most) return complain(`Up to ${props.most} titles can be read here.`);
  set([...history(), {title, domain: item.domain}], `Added ${title}.`);
  showNewest();
}

function choose(item) {
  input.value = "";
  close();
  add(item);
}

// One after the other, so that the order is that of the typing however long the answers take.
let adding = Promise.resolve();

function addTyped() {
  const typed = input.value.trim();
  if (blank(typed)) return complain("Type a title first, or choose one from the list.");
  input.value = "";
  close();
  adding = adding.then(async () => {
    const reply = await server.search(typed);
    add(reply.named ?? {title: typed, domain: null});
  });
}

function close() {
  asked += 1;  // answers on their way come too late
  clearTimeout(timer);
  options.hidden = true;
  active = -1;
  input.setAttribute("aria-expanded", "false");
  input.removeAttribute("aria-activedescendant");
}

async function suggest() {
  const typed = input.value.trim();
  const number = (asked += 1);
  const reply = await server.search(typed);
  if (number !== asked || document.activeElement !== input) return;
  shown = reply.found.filter((item) => !history().some((old) => same(old.title, item.title)));
  const rows = shown.map((item) => {
    const row = make("li");
    const title = make("span", "title", item.title);
    title.dir = "auto";
    row.append(title, domainMark(item.domain));
    return row;
  });
  if (!blank(typed) && !reply.named) {
    shown.push({title: typed, domain: null});
    const row = make("li", "own");
    row.append("Add ", make("q", "", typed), " as it is");
    rows.push(row);
  }
  rows.forEach((row, place) => {
    row.id = `title-option-${place}`;
    row.setAttribute("role", "option");
    row.setAttribute("aria-selected", "false");
    row.addEventListener("pointerdown", (event) => event.preventDefault());  // keeps the focus in the box
    row.addEventListener("click", () => choose(shown[place]));
  });
  options.replaceChildren(...rows);
  options.scrollTop = 0;
  active = -1;
  options.hidden = rows.length === 0;
  input.setAttribute("aria-expanded", String(rows.length > 0));
  input.removeAttribute("aria-activedescendant");
}

function move(step) {
  const rows = options.querySelectorAll("[role=option]");
  if (!rows.length) return;
  rows[active]?.setAttribute("aria-selected", "false");
  active = (active + step + rows.length + (active < 0 && step < 0 ? 1 : 0)) % rows.length;
  rows[active].setAttribute("aria-selected", "true");
  rows[active].scrollIntoView({block: "nearest"});
  input.setAttribute("aria-activedescendant", rows[active].id);
}

input.addEventListener("input", () => {
  complain("");
  clearTimeout(timer);
  timer = setTimeout(suggest, 120);
});
input.addEventListener("click", () => { if (options.hidden) suggest(); });
input.addEventListener("blur", close);
input.addEventListener("keydown", (event) => {
  if (event.isComposing) return;  // Enter ends a composed character, not the title
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    event.preventDefault();
    if (options.hidden) suggest();
    else move(event.key === "ArrowDown" ? 1 : -1);
  } else if (event.key === "Enter") {
    event.preventDefault();
    if (active >= 0) choose(shown[active]);
    else addTyped();
  } else if (event.key === "Escape") {
    close();
  }
});
find(".add").addEventListener("pointerdown", (event) => event.preventDefault());
find(".add").addEventListener("click", () => { addTyped(); input.focus(); });
clear.addEventListener("click", () => { set([], "Removed all titles."); input.focus(); });
watch("value", () => { draw(); showNewest(); });
draw();
