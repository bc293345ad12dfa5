// Numbers for readers, in the units that edgectl uses.

function scaled(value, units, step) {
  let unit = 0;
  while (value >= step && unit < units.length - 1) {
    value /= step;
    unit += 1;
  }
  return (unit ? value.toFixed(1) : Math.round(value)) + " " + units[unit];
}

// A count of bytes with a binary unit.
export const bytes = count => scaled(count, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024);

// Bytes a second as bits a second, the way links are sold.
export const bits = rate => scaled(rate * 8, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"], 1000);

// A span of seconds in its two largest units.
export function age(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const two = (large, small, names) => large + names[0] + (small ? " " + small + names[1] : "");
  if (whole < 60) return whole + "s";
  if (whole < 3600) return two(Math.floor(whole / 60), whole % 60, "ms");
  if (whole < 86400) return two(Math.floor(whole / 3600), Math.floor(whole / 60) % 60, "hm");
  return two(Math.floor(whole / 86400), Math.floor(whole / 3600) % 24, "dh");
}

// How long ago a time of the API was, by the clock of edged.
export const ago = (time, now) => age((now - Date.parse(time)) / 1000) + " ago";

export const plural = (count, one, many = one + "s") => count + " " + (count === 1 ? one : many);
