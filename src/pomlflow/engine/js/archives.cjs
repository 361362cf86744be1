// Documents that are archives (.docx, .xlsx): unpacked once with a limit, before POML's readers (0.0.8) trust their
// headers. Those have no limit of their own: a header that declares 4 GB, or 1 MB that unpacks to 3 GB, ends the process.
'use strict';

const zlib = require('node:zlib');

const LIMIT = 256e6; // bytes of one document, unpacked
const MEGABYTES = `${LIMIT / 1e6} MB`;
const ENTRY = 0x02014b50;
const WHOLE = 0xffffffff; // "see the zip64 field"

/** Where the central directory is and how many entries it has; undefined where the bytes are no archive. */
function directory(bytes) {
  const end = bytes.lastIndexOf('PK\x05\x06', undefined, 'latin1');
  if (bytes.toString('latin1', 0, 2) !== 'PK' || end < 0 || end + 22 > bytes.length) return undefined;
  const found = { count: bytes.readUInt16LE(end + 10), at: bytes.readUInt32LE(end + 16) };
  if (found.at !== WHOLE || end < 20) return found;
  const zip64 = Number(bytes.readBigUInt64LE(end - 12));
  return { count: Number(bytes.readBigUInt64LE(zip64 + 32)), at: Number(bytes.readBigUInt64LE(zip64 + 48)) };
}

/** The sizes and the place of an entry, of its zip64 field where they are too large for its own. */
function entry(bytes, at) {
  const [packed, size] = [bytes.readUInt32LE(at + 20), bytes.readUInt32LE(at + 24)];
  const [name, extra, comment] = [28, 30, 32].map((offset) => bytes.readUInt16LE(at + offset));
  const found = { size, packed, start: bytes.readUInt32LE(at + 42), method: bytes.readUInt16LE(at + 10) };
  found.name = bytes.toString('utf8', at + 46, at + 46 + name);
  found.next = at + 46 + name + extra + comment;
  for (let field = at + 46 + name; field + 4 <= found.next - comment; field += 4 + bytes.readUInt16LE(field + 2)) {
    if (bytes.readUInt16LE(field) !== 1) continue;
    let place = field + 4;
    for (const key of ['size', 'packed', 'start']) {
      if (found[key] !== WHOLE) continue;
      found[key] = Number(bytes.readBigUInt64LE(place));
      place += 8;
    }
  }
  return found;
}

/** The bytes that an entry unpacks to; undefined where it is broken in another way, which POML's reader reports. */
function unpacked(data, room) {
  try {
    return zlib.inflateRawSync(data, { maxOutputLength: Math.max(1, room) }).length;
  } catch (error) {
    return error.code === 'ERR_BUFFER_TOO_LARGE' ? Infinity : undefined;
  }
}

/**
 * Throws where an archive unpacks to more than the limit, or its headers declare another size than it has.
 *
 * @param {Uint8Array} bytes The document.
 * @param {string} name What it is called in the error.
 * @param {boolean} local Whether its reader trusts the header before each entry's data, as that of .xlsx does.
 */
function checkArchive(bytes, name, local) {
  if (!Buffer.isBuffer(bytes)) return;
  const { count, at } = directory(bytes) ?? { count: 0 };
  const large = () => new Error(`${name} unpacks to more than ${MEGABYTES}, and a render takes no larger document`);
  let total = 0;
  for (let i = 0, next = at; i < count && next + 46 <= bytes.length && bytes.readUInt32LE(next) === ENTRY; i++) {
    const { size, packed, start, method, name: part, next: following } = entry(bytes, next);
    next = following;
    if (start + 30 > bytes.length) return;
    const data = start + 30 + bytes.readUInt16LE(start + 26) + bytes.readUInt16LE(start + 28);
    const own = local ? bytes.readUInt32LE(start + 22) : 0;
    const real = method === 8 ? unpacked(bytes.subarray(data, data + packed), LIMIT - total) : Math.min(packed, bytes.length);
    if (real === undefined) return;
    total += real;
    if (total > LIMIT) throw large();
    const declared = [size, own || size].find((one) => one !== real);
    if (declared === undefined) continue;
    const remedy = own === WHOLE ? 'POML (0.0.8) cannot read such an archive (zip64): save it anew' : 'it is damaged';
    throw new Error(`${name}: ${part} has ${real} bytes unpacked, and its header says ${declared}: ${remedy}`);
  }
}

module.exports = { checkArchive };
