// The tiles of the slide: the visible ones are loaded, the nearest to the middle first. Coarser tiles are drawn until they arrive.

const MAX_REQUESTS = 6; // at once; more would wait in the browser, where they cannot be reordered
const CACHE_SIZE = 512; // decoded tiles, 256 KiB each
const RETRY_DELAY = 3000; // ms until a tile that failed is requested again

export class Tiles {
  /** `onLoad` is called when a tile has been loaded, `onError` with an error. */
  constructor({ slide, onLoad, onError }) {
    Object.assign(this, { slide, onLoad, onError });
    this.cache = new Map(); // bitmaps by key, the least recently used first
    this.requests = new Map(); // running requests by key
    this.failedAt = new Map(); // times by key
    this.waiting = []; // positions to request
  }

  /** The level whose pixels are nearest in size to the screen's, at `scale` screen px per level-0 px. */
  levelFor(scale) {
    return Math.min(this.slide.levels - 1, Math.max(0, Math.floor(0.35 - Math.log2(scale))));
  }

  /** The positions {level, column, row} of a level's tiles in a part of the slide, the nearest to its middle first. */
  inBox(level, { left, top, right, bottom }) {
    const side = this.slide.tile * 2 ** level; // level-0 px
    const indexOf = (pixel, length) => Math.min(Math.ceil(length / side) - 1, Math.max(0, Math.floor(pixel / side)));
    const [firstColumn, lastColumn] = [indexOf(left, this.slide.width), indexOf(right, this.slide.width)];
    const [firstRow, lastRow] = [indexOf(top, this.slide.height), indexOf(bottom, this.slide.height)];
    const positions = [];
    for (let row = firstRow; row <= lastRow; row++) for (let column = firstColumn; column <= lastColumn; column++) positions.push({ level, column, row });
    const [middleColumn, middleRow] = [(left + right) / 2 / side - 0.5, (top + bottom) / 2 / side - 0.5];
    const distance = ({ column, row }) => (column - middleColumn) ** 2 + (row - middleRow) ** 2;
    return positions.sort((a, b) => distance(a) - distance(b));
  }

  /** Load these tiles, in this order, and cancel the requests of all others. */
  load(positions) {
    if (!this.slide.tiles) return;
    const keys = new Set(positions.map(keyOf));
    for (const [key, request] of this.requests) if (!keys.has(key)) request.abort();
    this.waiting = positions.filter((position) => !this.cache.has(keyOf(position)) && !this.requests.has(keyOf(position)));
    this.startRequests();
  }

  startRequests() {
    const now = performance.now();
    while (this.requests.size < MAX_REQUESTS && this.waiting.length) {
      const position = this.waiting.shift();
      if (now - (this.failedAt.get(keyOf(position)) ?? -Infinity) > RETRY_DELAY) this.request(position);
    }
  }

  async request(position) {
    const key = keyOf(position), request = new AbortController();
    this.requests.set(key, request);
    const address = this.slide.tiles.replace(/\{(level|column|row)\}/g, (_, name) => position[name]);
    try {
      const response = await fetch(address, { signal: request.signal });
      if (!response.ok) throw new Error((await response.json()).detail);
      this.store(key, await createImageBitmap(await response.blob()));
      this.onLoad();
    } catch (error) {
      if (error.name !== "AbortError") {
        this.failedAt.set(key, performance.now());
        this.onError(error);
      }
    } finally {
      if (this.requests.get(key) === request) this.requests.delete(key);
      this.startRequests();
    }
  }

  store(key, bitmap) {
    this.failedAt.delete(key);
    this.cache.set(key, bitmap);
    for (const [oldKey, oldBitmap] of this.cache) {
      if (this.cache.size <= CACHE_SIZE) break;
      this.cache.delete(oldKey);
      oldBitmap.close();
    }
  }

  /** Draw a tile, or its part of the nearest coarser tile in the cache; returns whether it is the tile itself. */
  draw(context, position, toScreen) {
    for (let up = 0; position.level + up < this.slide.levels; up++) {
      const ancestor = { level: position.level + up, column: position.column >> up, row: position.row >> up };
      const key = keyOf(ancestor), bitmap = this.cache.get(key);
      if (!bitmap) continue;
      // Setting it again makes it the most recently used.
      this.cache.delete(key);
      this.cache.set(key, bitmap);
      this.drawPart(context, bitmap, position, ancestor, toScreen);
      return up === 0;
    }
    return false;
  }

  /** Draw the part of a bitmap that shows the tile at `position`; the bitmap is of `ancestor`, the same tile or a coarser one. */
  drawPart(context, bitmap, position, ancestor, toScreen) {
    const { slide } = this;
    // The tile on the slide, in level-0 px.
    const side = slide.tile * 2 ** position.level;
    const left = position.column * side, top = position.row * side;
    const right = Math.min(left + side, slide.width), bottom = Math.min(top + side, slide.height);
    // The same in the bitmap.
    const scale = 2 ** ancestor.level;
    const sourceX = left / scale - ancestor.column * slide.tile, sourceY = top / scale - ancestor.row * slide.tile;
    const sourceWidth = Math.min((right - left) / scale, bitmap.width - sourceX);
    const sourceHeight = Math.min((bottom - top) / scale, bitmap.height - sourceY);
    // The same on the screen, in whole pixels, so that no seam shows between tiles.
    const [x0, y0, x1, y1] = [...toScreen(left, top), ...toScreen(right, bottom)].map(Math.round);
    if (sourceWidth > 0 && sourceHeight > 0 && x1 > x0 && y1 > y0) context.drawImage(bitmap, sourceX, sourceY, sourceWidth, sourceHeight, x0, y0, x1 - x0, y1 - y0);
  }
}

function keyOf({ level, column, row }) {
  return `${level}/${column}/${row}`;
}
