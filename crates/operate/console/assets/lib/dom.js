// Elements from values. Text is only ever text: nothing here, and nothing that uses it, makes a page out of a string.

const SVG = 'http://www.w3.org/2000/svg';

// h('a', {class: 'x', href: '#/', on: {click: f}}, 'text', child, …); null and false children are left out.
export function h(tag, attributes, ...children) {
  return build(document.createElement(tag), attributes, children);
}

export function svg(tag, attributes, ...children) {
  return build(document.createElementNS(SVG, tag), attributes, children);
}

function build(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === 'on') {
      for (const [event, listener] of Object.entries(value)) element.addEventListener(event, listener);
    } else if (name === 'href') {
      // Addresses lead within the console: what an object says is no address.
      if (!String(value).startsWith('#/')) throw new Error(`not an address of the console: ${value}`);
      element.setAttribute('href', value);
    } else if (name === 'value' || name === 'checked' || name === 'disabled' || name === 'selected') {
      element[name] = value;
    } else if (name.startsWith('on') || name === 'style') {
      throw new Error(`${name} is no attribute of ours`);
    } else {
      element.setAttribute(name, value === true ? '' : value);
    }
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : String(child));
  }
}

export function fill(element, ...children) {
  element.replaceChildren();
  append(element, children);
  return element;
}

// Sets text only where it differs: what hasn't changed isn't laid out again.
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setWidth(element, width) {
  element.style.width = width;
}

let next = 0;
export function id(prefix = 'i') {
  next += 1;
  return `${prefix}-${next}`;
}

// Calls at most once a frame, with what was last given.
export function perFrame(call) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      call();
    });
  };
}

// Calls at once, and then at most every so many milliseconds for as long as it is asked.
export function atMost(call, milliseconds) {
  let waits = false;
  let again = false;
  const run = () => {
    if (waits) {
      again = true;
      return;
    }
    waits = true;
    requestAnimationFrame(() => call());
    setTimeout(() => {
      waits = false;
      if (again) {
        again = false;
        run();
      }
    }, milliseconds);
  };
  return run;
}

export function later(call, milliseconds) {
  let timer;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => call(...given), milliseconds);
  };
}
