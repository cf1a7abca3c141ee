// The mask painter: JavaScript that Gradio runs with `element`, `props`, `trigger` and `watch` of its piece of HTML.
//
// `props.value` is JSON with the picture's name and the addresses of a small picture and of its mask, if it has one. The
// mask is the alpha of a hidden canvas: where it is opaque, the picture counts. What does not count is shown darkened.
const SHADE = "rgba(10, 12, 20, 0.72)", STEPS = 30;
const find = (name) => element.querySelector(`[data-part="${name}"]`);
const mask = document.createElement("canvas"), shade = document.createElement("canvas");
let name = "", picture = null, undone = [], last = null, tool = "paint";

const pen = (canvas) => canvas.getContext("2d", { willReadFrequently: canvas === mask });

function resize(canvas) {
  canvas.width = picture.naturalWidth;
  canvas.height = picture.naturalHeight;
}

function show() {
  const view = find("canvas"), over = pen(shade);
  resize(shade);
  over.fillStyle = SHADE;
  over.fillRect(0, 0, shade.width, shade.height);
  over.globalCompositeOperation = "destination-out";
  over.drawImage(mask, 0, 0);
  pen(view).drawImage(picture, 0, 0);
  pen(view).drawImage(shade, 0, 0);
  find("undo").disabled = !undone.length;
}

function remember() {
  undone.push(pen(mask).getImageData(0, 0, mask.width, mask.height));
  if (undone.length > STEPS) undone.shift();
}

function change(edit) {
  if (!picture) return;
  remember();
  const pixels = pen(mask).getImageData(0, 0, mask.width, mask.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at] = pixels.data[at + 1] = pixels.data[at + 2] = 255;
    pixels.data[at + 3] = edit(pixels.data[at + 3]);
  }
  pen(mask).putImageData(pixels, 0, 0);
  show();
}

function opened(address) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error(`${name} cannot be shown; reload the page`));
    image.src = address;
  });
}

async function load() {
  const given = JSON.parse(props.value || "{}");
  picture = null;
  if (!given.name) return;
  name = given.name;
  undone = [];
  const [image, before] = await Promise.all([opened(given.picture), given.mask && opened(given.mask)]);
  if (given.name !== name) return;
  picture = image;
  [mask, find("canvas")].forEach(resize);
  find("canvas").style.maxWidth = `min(560px, ${(70 * mask.width) / mask.height}vh)`;
  if (before) {
    pen(mask).drawImage(before, 0, 0, mask.width, mask.height);
    const pixels = pen(mask).getImageData(0, 0, mask.width, mask.height);
    for (let at = 0; at < pixels.data.length; at += 4) {
      pixels.data[at + 3] = pixels.data[at];
      pixels.data[at] = pixels.data[at + 1] = pixels.data[at + 2] = 255;
    }
    pen(mask).putImageData(pixels, 0, 0);
  }
  show();
}

function position(event) {
  const box = find("canvas").getBoundingClientRect();
  return [
    ((event.clientX - box.left) * mask.width) / box.width, ((event.clientY - box.top) * mask.height) / box.height,
  ];
}

function showBrush(event) {
  const view = pen(find("canvas"));
  show();
  view.strokeStyle = "#fff";
  view.lineWidth = 1;
  view.beginPath();
  view.arc(...position(event), Number(find("size").value) / 2, 0, 2 * Math.PI);
  view.stroke();
}

function stroke(event) {
  const ink = pen(mask), point = position(event);
  ink.globalCompositeOperation = tool === "paint" ? "source-over" : "destination-out";
  ink.strokeStyle = "#fff";
  ink.lineCap = ink.lineJoin = "round";
  ink.lineWidth = Number(find("size").value);
  ink.beginPath();
  ink.moveTo(...(last || point));
  ink.lineTo(...point);
  ink.stroke();
  ink.globalCompositeOperation = "source-over";
  last = point;
  show();
}

function exported() {
  const flat = document.createElement("canvas");
  resize(flat);
  pen(flat).fillStyle = "#000";
  pen(flat).fillRect(0, 0, flat.width, flat.height);
  pen(flat).drawImage(mask, 0, 0);
  return flat.toDataURL("image/png");
}

function choose(which) {
  tool = which;
  for (const part of ["paint", "erase"]) find(part).setAttribute("aria-pressed", String(part === which));
}

const ACTS = {
  paint: () => choose("paint"),
  erase: () => choose("erase"),
  invert: () => change((alpha) => 255 - alpha),
  clear: () => change(() => 0),
  undo: () => {
    if (undone.length) pen(mask).putImageData(undone.pop(), 0, 0);
    show();
  },
  save: () => picture && trigger("save", { name, mask: exported() }),
  remove: () => trigger("remove", { name }),
  close: () => trigger("close"),
};

element.addEventListener("click", (event) => {
  const part = event.target.closest("button")?.dataset.part;
  if (part in ACTS) ACTS[part]();
});
element.addEventListener("pointerdown", (event) => {
  if (event.target !== find("canvas") || !picture || event.button) return;
  event.preventDefault();
  event.target.setPointerCapture(event.pointerId);
  remember();
  last = null;
  stroke(event);
});
element.addEventListener("pointermove", (event) => {
  if (last) stroke(event);
  else if (picture && event.target === find("canvas")) showBrush(event);
});
element.addEventListener("pointerout", () => picture && show());
for (const end of ["pointerup", "pointercancel"]) element.addEventListener(end, () => (last = null));
watch("value", load);
load();
