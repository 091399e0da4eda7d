// The slide's pictures: tiles as they are needed, the nearest first, and what can stand in until they are there.

const AT_ONCE = 6; // requests; more would wait in the browser, where they cannot be reordered
const KEPT = 512; // decoded tiles, 256 KiB each
const AGAIN = 3000; // milliseconds until a tile that failed is asked for again

export class Tiles {
  /** `came` is called when a tile has come, `failed` with a refusal of the server. */
  constructor({ slide, came, failed }) {
    Object.assign(this, { slide, came, failed, kept: new Map(), asked: new Map(), broken: new Map(), waiting: [] });
  }

  /** The level whose pixels are nearest to the screen's, at `scale` screen px a level-0 px. */
  levelFor(scale) {
    return Math.min(this.slide.levels - 1, Math.max(0, Math.floor(0.35 - Math.log2(scale))));
  }

  /** The places of a level's tiles in a part of the slide, the nearest to its middle first. */
  within(level, { left, top, right, bottom }) {
    const side = this.slide.tile * 2 ** level;
    const last = (length) => Math.ceil(length / side) - 1;
    const clamp = (place, length) => Math.min(last(length), Math.max(0, Math.floor(place / side)));
    const [first, stop] = [clamp(left, this.slide.width), clamp(right, this.slide.width)];
    const [upper, lower] = [clamp(top, this.slide.height), clamp(bottom, this.slide.height)];
    const found = [];
    for (let row = upper; row <= lower; row++) for (let column = first; column <= stop; column++) found.push({ level, column, row });
    const middle = [(left + right) / 2 / side - 0.5, (top + bottom) / 2 / side - 0.5];
    const distance = ({ column, row }) => (column - middle[0]) ** 2 + (row - middle[1]) ** 2;
    return found.sort((one, other) => distance(one) - distance(other));
  }

  /** Ask for these tiles, in this order, and for no others: requests for what is not wanted any more are cancelled. */
  want(places) {
    if (!this.slide.tiles) return;
    const wanted = new Set(places.map(key));
    for (const [name, request] of this.asked) if (!wanted.has(name)) request.abort();
    this.waiting = places.filter((place) => !this.kept.has(key(place)) && !this.asked.has(key(place)));
    this.pump();
  }

  pump() {
    const now = performance.now();
    while (this.asked.size < AT_ONCE && this.waiting.length) {
      const place = this.waiting.shift();
      if (now - (this.broken.get(key(place)) ?? -Infinity) > AGAIN) this.load(place);
    }
  }

  async load(place) {
    const name = key(place), request = new AbortController();
    this.asked.set(name, request);
    const address = this.slide.tiles.replace(/\{(level|column|row)\}/g, (_, part) => place[part]);
    try {
      const response = await fetch(address, { signal: request.signal });
      if (!response.ok) throw new Error((await response.json()).detail);
      this.keep(name, await createImageBitmap(await response.blob()));
      this.came();
    } catch (error) {
      if (error.name !== "AbortError") {
        this.broken.set(name, performance.now());
        this.failed(error);
      }
    } finally {
      if (this.asked.get(name) === request) this.asked.delete(name);
      this.pump();
    }
  }

  keep(name, bitmap) {
    this.broken.delete(name);
    this.kept.set(name, bitmap);
    for (const [oldest, gone] of this.kept) {
      if (this.kept.size <= KEPT) break;
      this.kept.delete(oldest);
      gone.close();
    }
  }

  /** Draw what there is of a tile: itself, or its part of the nearest coarser one. */
  draw(context, place, toScreen) {
    for (let up = 0; place.level + up < this.slide.levels; up++) {
      const above = { level: place.level + up, column: place.column >> up, row: place.row >> up };
      const name = key(above), bitmap = this.kept.get(name);
      if (!bitmap) continue;
      this.kept.delete(name); // and at the end again: the last used ones stay
      this.kept.set(name, bitmap);
      drawPart(context, bitmap, part(this.slide, place, above), toScreen);
      return up === 0;
    }
    return false;
  }
}

/** The level-0 px of a tile and where they lie in the bitmap of one above it (or in its own). */
function part(slide, place, above) {
  const side = slide.tile * 2 ** place.level, scale = 2 ** above.level;
  const left = place.column * side, top = place.row * side;
  const start = [above.column * slide.tile, above.row * slide.tile];
  return {
    left, top, right: Math.min(left + side, slide.width), bottom: Math.min(top + side, slide.height),
    from: [left / scale - start[0], top / scale - start[1]], scale,
  };
}

function drawPart(context, bitmap, { left, top, right, bottom, from, scale }, toScreen) {
  const [x, y] = toScreen(left, top), [endX, endY] = toScreen(right, bottom);
  // On whole pixels of the screen, so that no seam shows between tiles.
  const [x0, y0, x1, y1] = [x, y, endX, endY].map(Math.round);
  const across = Math.min((right - left) / scale, bitmap.width - from[0]);
  const down = Math.min((bottom - top) / scale, bitmap.height - from[1]);
  if (across > 0 && down > 0 && x1 > x0 && y1 > y0) context.drawImage(bitmap, from[0], from[1], across, down, x0, y0, x1 - x0, y1 - y0);
}

function key({ level, column, row }) {
  return `${level}/${column}/${row}`;
}
