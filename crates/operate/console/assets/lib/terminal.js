// A terminal: a screen of cells that a program's output changes, as xterm does for what shells and full-screen programs use.
// Colours, attributes, moving and erasing, scroll regions, the alternate screen, UTF-8. No mouse, no graphics, no titles.
//
// Pure: bytes in, cells out; `views/exec.js` draws it.

const LINES_KEPT = 2000;

export class Terminal {
  constructor(columns, rows) {
    this.decoder = new TextDecoder();
    this.state = '';
    this.parameters = '';
    this.past = [];
    this.reply = () => {};
    this.pen = {};
    this.appKeys = false;
    this.hidden = false;
    this.bracketed = false;
    Object.assign(this, { columns, rows });
    this.main = this.blank();
    this.screen = this.main;
    this.other = null;
    this.reset();
  }

  reset() {
    Object.assign(this, { x: 0, y: 0, top: 0, bottom: this.rows - 1, wrap: false, saved: { x: 0, y: 0, pen: {} } });
    this.pen = {};
  }

  blank() {
    return Array.from({ length: this.rows }, () => this.line());
  }
  line() {
    return Array.from({ length: this.columns }, () => this.cell(' '));
  }
  cell(character) {
    return { c: character, ...this.pen };
  }

  resize(columns, rows) {
    if (columns === this.columns && rows === this.rows) return;
    const fit = (screen, isMain) => {
      const lines = screen.map((line) => (line.length > columns ? line.slice(0, columns) : [...line, ...Array.from({ length: columns - line.length }, () => ({ c: ' ' }))]));
      while (lines.length > rows) {
        if (this.y < lines.length - 1 && isBlank(lines[lines.length - 1])) lines.pop();
        else {
          const gone = lines.shift();
          if (isMain) this.keep(gone);
          this.y = Math.max(0, this.y - 1);
        }
      }
      while (lines.length < rows) lines.push(Array.from({ length: columns }, () => ({ c: ' ' })));
      return lines;
    };
    const onMain = this.screen === this.main;
    this.columns = columns;
    this.rows = rows;
    this.main = fit(this.main, true);
    if (onMain) this.screen = this.main;
    else this.screen = fit(this.screen, false);
    Object.assign(this, { x: Math.min(this.x, columns - 1), y: Math.min(this.y, rows - 1), top: 0, bottom: rows - 1, wrap: false });
  }

  write(bytes) {
    for (const character of this.decoder.decode(bytes, { stream: true })) this.put(character);
  }

  put(c) {
    const code = c.codePointAt(0);
    if (this.state === 'osc') {
      if (c === '\u0007' || (this.parameters.endsWith('\u001b') && c === '\\')) this.state = '';
      else this.parameters = this.parameters.length < 4096 ? this.parameters + c : c;
      return;
    }
    if (code === 0x1b) {
      this.state = 'escape';
      this.parameters = '';
    } else if (code < 0x20 || code === 0x7f) this.control(code);
    else if (this.state === 'escape') this.escape(c);
    else if (this.state === 'charset') this.state = '';
    else if (this.state === 'csi') {
      if (code >= 0x40) {
        this.state = '';
        this.command(c);
      } else if (this.parameters.length < 256) this.parameters += c;
    } else this.print(c, code);
  }

  control(code) {
    if (code === 0x0d) this.x = 0;
    else if (code >= 0x0a && code <= 0x0c) this.down();
    else if (code === 0x08) this.x = Math.max(0, this.x - 1);
    else if (code === 0x09) this.x = Math.min(this.columns - 1, (Math.floor(this.x / 8) + 1) * 8);
    else return;
    this.wrap = false;
  }

  print(c, code) {
    if (isCombining(code)) {
      const at = this.screen[this.y][Math.max(0, this.wrap ? this.x : this.x - 1)];
      if (at.c.length < 8) at.c += c;
      return;
    }
    if (this.wrap) {
      this.x = 0;
      this.down();
      this.wrap = false;
    }
    const wide = isWide(code) && this.x < this.columns - 1;
    this.screen[this.y][this.x] = this.cell(c);
    if (wide) this.screen[this.y][this.x + 1] = { ...this.pen, c: '' };
    this.x += wide ? 2 : 1;
    if (this.x >= this.columns) {
      this.x = this.columns - 1;
      this.wrap = true;
    }
  }

  down() {
    if (this.y === this.bottom) this.scroll(1);
    else if (this.y < this.rows - 1) this.y += 1;
  }

  scroll(lines) {
    for (let i = 0; i < Math.min(Math.abs(lines), this.rows); i += 1) {
      if (lines > 0) {
        const [gone] = this.screen.splice(this.top, 1);
        if (this.screen === this.main && this.top === 0) this.keep(gone);
        this.screen.splice(this.bottom, 0, this.line());
      } else {
        this.screen.splice(this.bottom, 1);
        this.screen.splice(this.top, 0, this.line());
      }
    }
  }

  keep(line) {
    this.past.push(line);
    if (this.past.length > LINES_KEPT) this.past.splice(0, this.past.length - LINES_KEPT);
  }

  escape(c) {
    this.state = '';
    if (c === '[') this.state = 'csi';
    else if (c === ']' || c === 'P' || c === '_' || c === '^') this.state = 'osc';
    else if ('()*+#'.includes(c)) this.state = 'charset';
    else if (c === '7') this.save();
    else if (c === '8') this.restore();
    else if (c === 'D') this.down();
    else if (c === 'E') { this.x = 0; this.down(); }
    else if (c === 'M') {
      if (this.y === this.top) this.scroll(-1);
      else this.y = Math.max(0, this.y - 1);
    } else if (c === 'c') {
      this.pen = {};
      this.main = this.blank();
      this.screen = this.main;
      this.reset();
    }
  }

  save() { this.saved = { x: this.x, y: this.y, pen: { ...this.pen } }; }
  restore() {
    Object.assign(this, { x: Math.min(this.saved.x, this.columns - 1), y: Math.min(this.saved.y, this.rows - 1), wrap: false });
    this.pen = { ...this.saved.pen };
  }

  command(c) {
    const isPrivate = /^[?>=!]/.test(this.parameters);
    const given = this.parameters.replace(/^[?>=!]/, '').split(/[;:]/).map((n) => parseInt(n, 10));
    const n = (at, otherwise) => (Number.isNaN(given[at]) || given[at] === undefined ? otherwise : given[at]);
    const one = Math.max(1, n(0, 1));
    const clampX = (x) => { this.x = Math.max(0, Math.min(this.columns - 1, x)); };
    const clampY = (y) => { this.y = Math.max(0, Math.min(this.rows - 1, y)); };
    const line = this.screen[this.y];
    if (isPrivate && c !== 'h' && c !== 'l') return;
    if (c !== 'm') this.wrap = false;
    switch (c) {
      case 'A': clampY(Math.max(this.y >= this.top ? this.top : 0, this.y - one)); break;
      case 'B': case 'e': clampY(Math.min(this.y <= this.bottom ? this.bottom : this.rows - 1, this.y + one)); break;
      case 'C': case 'a': clampX(this.x + one); break;
      case 'D': clampX(this.x - one); break;
      case 'E': clampX(0); clampY(this.y + one); break;
      case 'F': clampX(0); clampY(this.y - one); break;
      case 'G': case '`': clampX(one - 1); break;
      case 'd': clampY(one - 1); break;
      case 'H': case 'f': clampY(one - 1); clampX(n(1, 1) - 1); break;
      case 'J': this.eraseScreen(n(0, 0)); break;
      case 'K': this.eraseLine(n(0, 0)); break;
      case 'X': for (let i = this.x; i < Math.min(this.columns, this.x + one); i += 1) line[i] = this.cell(' '); break;
      case 'P': line.splice(this.x, Math.min(one, this.columns)); while (line.length < this.columns) line.push(this.cell(' ')); break;
      case '@': for (let i = 0; i < Math.min(one, this.columns); i += 1) line.splice(this.x, 0, this.cell(' ')); line.length = this.columns; break;
      case 'L': this.within(() => this.scroll(-one)); break;
      case 'M': this.within(() => this.scroll(one)); break;
      case 'S': this.scroll(one); break;
      case 'T': this.scroll(-one); break;
      case 'r': {
        const [top, bottom] = [n(0, 1) - 1, Math.min(n(1, this.rows), this.rows) - 1];
        if (top >= 0 && top < bottom) Object.assign(this, { top, bottom, x: 0, y: 0 });
        break;
      }
      case 's': this.save(); break;
      case 'u': this.restore(); break;
      case 'm': this.paint(given); break;
      case 'n':
        if (n(0, 0) === 6) this.reply(`\u001b[${this.y + 1};${this.x + 1}R`);
        if (n(0, 0) === 5) this.reply('\u001b[0n');
        break;
      case 'c': this.reply('\u001b[?6c'); break;
      case 'h': case 'l': if (isPrivate) given.forEach((mode) => this.mode(mode, c === 'h')); break;
      default:
    }
  }

  // Lines put in or taken out move what is below them, within the region.
  within(call) {
    if (this.y < this.top || this.y > this.bottom) return;
    const top = this.top;
    const [screen, main] = [this.screen, this.main];
    this.top = this.y;
    this.main = null; // What is taken out isn't the past.
    call();
    Object.assign(this, { top, screen, main });
    this.x = 0;
  }

  mode(mode, on) {
    if (mode === 25) this.hidden = !on;
    else if (mode === 1) this.appKeys = on;
    else if (mode === 2004) this.bracketed = on;
    else if ([47, 1047, 1049].includes(mode)) {
      if (on === (this.screen !== this.main)) return;
      if (on) {
        if (mode === 1049) this.save();
        this.screen = this.blank();
      } else {
        this.screen = this.main;
        if (mode === 1049) this.restore();
      }
      Object.assign(this, { top: 0, bottom: this.rows - 1 });
    }
  }

  eraseLine(how) {
    const [from, to] = [[this.x, this.columns], [0, this.x + 1], [0, this.columns]][how] ?? [0, 0];
    for (let i = from; i < to; i += 1) this.screen[this.y][i] = this.cell(' ');
  }

  eraseScreen(how) {
    if (how === 3) this.past = [];
    if (how > 2) return;
    if (how !== 2) this.eraseLine(how);
    const [from, to] = [[this.y + 1, this.rows], [0, this.y], [0, this.rows]][how];
    for (let y = from; y < to; y += 1) this.screen[y] = this.line();
  }

  paint(given) {
    const pen = { ...this.pen };
    for (let i = 0; i < given.length; i += 1) {
      const code = Number.isNaN(given[i]) ? 0 : given[i];
      if (code === 0) for (const key of Object.keys(pen)) delete pen[key];
      else if (code === 1) pen.bold = true;
      else if (code === 2) pen.dim = true;
      else if (code === 4) pen.under = true;
      else if (code === 7) pen.turned = true;
      else if (code === 22) { delete pen.bold; delete pen.dim; }
      else if (code === 24) delete pen.under;
      else if (code === 27) delete pen.turned;
      else if (code >= 30 && code <= 37) pen.front = code - 30;
      else if (code >= 40 && code <= 47) pen.back = code - 40;
      else if (code >= 90 && code <= 97) pen.front = code - 82;
      else if (code >= 100 && code <= 107) pen.back = code - 92;
      else if (code === 39) delete pen.front;
      else if (code === 49) delete pen.back;
      else if (code === 38 || code === 48) {
        const key = code === 38 ? 'front' : 'back';
        if (given[i + 1] === 5) {
          pen[key] = given[i + 2] & 255;
          i += 2;
        } else if (given[i + 1] === 2) {
          pen[key] = `rgb(${given.slice(i + 2, i + 5).map((v) => v & 255).join(' ')})`;
          i += 4;
        }
      }
    }
    this.pen = pen;
  }
}

function isBlank(line) {
  return line.every((cell) => cell.c === ' ');
}

function isCombining(code) {
  return (code >= 0x300 && code <= 0x36f) || (code >= 0x200b && code <= 0x200f) || (code >= 0xfe00 && code <= 0xfe0f);
}

function isWide(code) {
  return (code >= 0x1100 && code <= 0x115f) || (code >= 0x2e80 && code <= 0xa4cf) || (code >= 0xac00 && code <= 0xd7a3) || (code >= 0xf900 && code <= 0xfaff)
    || (code >= 0xfe30 && code <= 0xfe6f) || (code >= 0xff00 && code <= 0xff60) || (code >= 0xffe0 && code <= 0xffe6) || (code >= 0x1f300 && code <= 0x1faff);
}
