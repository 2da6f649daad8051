// Runs once when the component is there; Gradio gives element, props, trigger and watch.
// Its value has the cards: a place, a caption, and an image with outlines as the canvas takes them.
const cards = element.querySelector(".cards");

function shape(kind, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const name in attributes) made.setAttribute(name, attributes[name]);
  return made;
}

function path(rings, [height, width]) {
  const corners = ring => ring.map(([x, y]) => x * width + " " + y * height).join("L");
  return rings.map(ring => "M" + corners(ring) + "Z").join("");
}

function drawn({address, size, target, others, rings}) {
  const stage = document.createElement("div");
  stage.className = "stage";
  if (!address) return stage;
  const image = document.createElement("img");
  [image.src, image.alt] = [address, ""];
  const svg = shape("svg", {viewBox: "0 0 " + size[1] + " " + size[0]});
  svg.append(shape("path", {class: "target", d: path(target, size)}));
  for (const other of others) svg.append(shape("path", {d: path(other, size)}));
  svg.append(shape("path", {class: "answer", d: path(rings, size)}));
  stage.append(image, svg);
  return stage;
}

function update() {
  const {items = [], chosen = null} = props.value || {};
  cards.replaceChildren(...items.map(item => {
    const button = document.createElement("button");
    const caption = document.createElement("span");
    [caption.className, caption.textContent] = ["caption", item.caption];
    [button.type, button.title] = ["button", item.caption];
    button.classList.toggle("chosen", item.place === chosen);
    button.append(drawn(item), caption);
    button.onclick = () => {
      for (const other of cards.children) other.classList.toggle("chosen", other === button);
      trigger("choose", {place: item.place});
    };
    return button;
  }));
}

watch(["value"], update);
update();
