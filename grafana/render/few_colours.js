// Writes a PNG again with a palette: node few_colours.js LARGE.png SMALL.png
import { readFileSync, writeFileSync } from 'node:fs';
import UPNG from 'upng-js';

const [large, small] = process.argv.slice(2);
const { width, height, ...image } = UPNG.decode(new Uint8Array(readFileSync(large)).buffer);
const pixels = UPNG.toRGBA8({ width, height, ...image });
writeFileSync(small, Buffer.from(UPNG.encode(pixels, width, height, 64)));
