// Numbers as people read them.

const UNITS = ["bytes", "kB", "MB", "GB", "TB"];

/** Bytes in decimal units with three digits, as `griffin info` writes them. */
export function bytes(count) {
  let size = count;
  let unit = 0;
  while (size >= 1000 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${Number(size.toPrecision(3))} ${UNITS[unit]}`;
}

/** A whole number with separators. */
export function whole(count) {
  return count.toLocaleString("en");
}

/** A time: milliseconds below a second. */
export function seconds(value) {
  return value < 1 ? `${Math.round(value * 1000)} ms` : `${value.toFixed(1)} s`;
}

/** The beginning of a text in one line. */
export function inShort(text, length) {
  const line = text.replace(/\s+/g, " ").trim();
  return line.length <= length ? line : `${line.slice(0, length - 1)}…`;
}
