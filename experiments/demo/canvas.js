// Runs once when the component is there; Gradio gives element, props, trigger and watch.
// Coordinates of props and events are shares of the image's width and height, as in seg_env.
const stage = element.querySelector(".stage");
const picture = stage.querySelector("img");
const svg = stage.querySelector("svg");
const input = element.querySelector("input[type=file]");
const LONGEST_SIDE = 1024; // an image is reduced to it before it is sent
const MOST_BYTES = 11e6; // of a file that the browser cannot read, and the server perhaps can
const CLICK = 5; // pixels within which a press is a click, and no box

let [height, width] = [1, 1];
let drawn = {}; // all that values said so far; one may leave out what stays
let rings = []; // of the answer, as they are being dragged
let press = null; // what the pointer is doing: {vertex: [ring, number]} or {from: [x, y]}
let asked = null; // the place that was asked about: {point: [x, y]} or {bbox: [x, y, x, y]}

function add(tag, kind, attributes) {
  const shape = document.createElementNS("http://www.w3.org/2000/svg", tag);
  shape.setAttribute("class", kind);
  for (const name in attributes) shape.setAttribute(name, attributes[name]);
  svg.append(shape);
  return shape;
}

function path(outline, isOpen) {
  const corners = ring => ring.map(([x, y]) => x * width + " " + y * height).join("L");
  return outline.map(ring => "M" + corners(ring) + (isOpen ? "" : "Z")).join("");
}

function dot([x, y], kind, radius) {
  const pixel = width / (svg.clientWidth || width); // one of the screen, in those of the image
  return add("circle", kind, {cx: x * width, cy: y * height, r: radius * pixel});
}

function draw() {
  const {target = [], others = [], point = null, written = true} = drawn;
  svg.replaceChildren();
  add("path", "target", {d: path(target), "fill-rule": "evenodd"});
  for (const other of others) add("path", "other", {d: path(other)});
  add("path", "answer", {d: path(rings, !written), "fill-rule": "evenodd"});
  if (asked?.bbox) {
    const [x0, y0, x1, y1] = asked.bbox;
    const [x, y] = [Math.min(x0, x1) * width, Math.min(y0, y1) * height];
    const size = {width: Math.abs(x1 - x0) * width, height: Math.abs(y1 - y0) * height};
    add("rect", "asked", {x, y, ...size});
  }
  if (asked?.point) dot(asked.point, "asked", 9);
  if (point) dot(point, "point", 6);
  rings.forEach((ring, number) => ring.forEach((vertex, index) => {
    dot(vertex, index ? "vertex" : "vertex first", 4);
    if (written) dot(vertex, "grip", 11).vertex = [number, index];
  }));
}

function show() {
  const {address, size} = props.shown || {};
  if (!address) return;
  [height, width] = size;
  svg.setAttribute("viewBox", "0 0 " + width + " " + height);
  if (picture.src !== address) [picture.src, asked] = [address, null];
}

function update() {
  show();
  if (press?.vertex) return; // what is being dragged is newer than what the server knows
  drawn = {...drawn, ...props.value};
  rings = (drawn.rings || []).map(ring => ring.map(vertex => [...vertex]));
  if (props.value && "asked" in props.value) asked = props.value.asked;
  draw();
}

function at(event) {
  const box = svg.getBoundingClientRect();
  const share = (value, start, length) => Math.min(1, Math.max(0, (value - start) / length));
  return [share(event.clientX, box.left, box.width), share(event.clientY, box.top, box.height)];
}

function move() {
  props.value = {rings}; // sent with every move
  trigger("move");
}

svg.onpointerdown = event => {
  if (event.button || press) return;
  svg.setPointerCapture(event.pointerId);
  const {vertex} = event.target;
  press = vertex ? {vertex} : {from: at(event), start: [event.clientX, event.clientY]};
};

svg.onpointermove = event => {
  if (press?.vertex) {
    const [ring, index] = press.vertex;
    rings[ring][index] = at(event);
    draw();
    move();
  } else if (press && isDrag(event)) {
    asked = {bbox: [...press.from, ...at(event)]};
    draw();
  }
};

svg.onpointerup = event => {
  const ended = press;
  press = null;
  if (ended?.vertex) move();
  else if (ended) {
    asked = isDrag(event, ended) ? {bbox: [...ended.from, ...at(event)]} : {point: at(event)};
    draw();
    trigger("ask", asked);
  }
};

svg.onpointercancel = () => { press = null; update(); };

svg.ondblclick = event => { // takes a vertex away
  const [ring, index] = event.target.vertex || [];
  if (ring === undefined || rings[ring].length <= 3) return;
  rings[ring].splice(index, 1);
  draw();
  move();
};

function isDrag(event, {start} = press) {
  return Math.hypot(event.clientX - start[0], event.clientY - start[1]) > CLICK;
}

async function take(file) {
  if (!file) return;
  let address = "";
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    const canvas = document.createElement("canvas");
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    address = canvas.toDataURL("image/png");
  } catch { // no image, or one of a kind that the browser does not know
    if (file.size <= MOST_BYTES) address = await new Promise(resolve => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => resolve("");
      reader.readAsDataURL(file);
    });
  }
  trigger("choose", {address, name: file.name});
}

element.querySelector("button").onclick = () => input.click();
input.onchange = () => { take(input.files[0]); input.value = ""; };
element.ondragover = event => { event.preventDefault(); element.classList.add("over"); };
element.ondragleave = () => element.classList.remove("over");
element.ondrop = event => {
  event.preventDefault();
  element.classList.remove("over");
  take(event.dataTransfer.files[0]);
};
document.addEventListener("paste", event => take(event.clipboardData.files[0]));
new ResizeObserver(draw).observe(svg);
watch(["value", "shown"], update);
update();
