// Which rows of docs/protocol/pusher.md a server shows: runs the tests that name rows, of
// all files or of those that are named, and says of each row what became of it. Ends with
// status 1 if a row failed, or if tests and page do not have the same rows.
//
//   PUSHER_HOST=ws.example.com PUSHER_PORT=443 PUSHER_SCHEME=https … npm run rows
//
// docs/TESTING.md has what else can be said of the server.

import { readFileSync, readdirSync } from "node:fs";
import { basename } from "node:path";
import { run } from "node:test";
import { fileURLToPath } from "node:url";
import { inspect } from "node:util";
import { server } from "./support.mjs";

const here = fileURLToPath(new URL(".", import.meta.url));
const page = readFileSync(`${here}../../docs/protocol/pusher.md`, "utf8");
/** The rows of the page, and what the tests have told of each. */
const rows = new Map([...page.matchAll(/^\| (P\d+) \|/gm)].map(([, row]) => [row, { passed: [], failed: [], skipped: [] }]));

const all = readdirSync(here).filter((name) => name.endsWith(".test.mjs")).sort();
/** The rows that the titles in a file name. */
const named = new Map(all.map((name) => {
  const titles = readFileSync(here + name, "utf8").matchAll(/["'`]\[(P\d+(?: P\d+)*)\] /g);
  return [name, new Set([...titles].flatMap(([, list]) => list.split(" ")))];
}));
const files = process.argv.length > 2 ? process.argv.slice(2).map((path) => basename(path)) : all;

const wrong = [];
[...rows.keys()].forEach((row, number) => row !== `P${number + 1}` && wrong.push(`${row} stands where P${number + 1} is expected`));
const shown = new Set([...named.values()].flatMap((list) => [...list]));
for (const row of rows.keys()) if (!shown.has(row)) wrong.push(`${row} is shown by no test`);
for (const row of shown) if (!rows.has(row)) wrong.push(`${row} is not on the page`);
for (const file of files) if (!named.has(file)) wrong.push(`there is no ${file}`);

await fetch(server).catch(({ cause }) => {
  console.log(`${server} cannot be reached: ${cause?.message}`);
  process.exit(1);
});
const errors = [];
/** What the files have complained about. */
const complaints = {};
const tests = run({
  files: files.filter((file) => named.has(file)).map((file) => here + file),
  // One after the other: some count what others would disturb.
  concurrency: 1,
  // pusher-js sets a timer of 30 s when it ends what the server has closed.
  forceExit: true,
  testNamePatterns: [/^\[P\d/],
});
for await (const { type, data } of tests) {
  if (type === "test:stderr") complaints[data.file] = (complaints[data.file] ?? "") + data.message;
  if (type !== "test:pass" && type !== "test:fail") continue;
  const file = basename(data.file ?? data.name);
  const [, list] = data.name.match(/^\[(P[\dP ]+)\] /) ?? [];
  const test = `${file}: ${data.name}`;
  if (type === "test:fail") {
    // A file that fails as such has said elsewhere why.
    const why = (list === undefined && complaints[data.file ?? data.name]) || inspect(data.details.error.cause ?? data.details.error);
    errors.push(`${test}\n${why}`);
  }
  for (const row of list?.split(" ") ?? []) {
    const told = rows.get(row);
    if (data.skip !== undefined) told?.skipped.push(data.skip);
    else if (type === "test:fail") told?.failed.push(test);
    else told?.passed.push(test);
  }
}

const count = { pass: 0, FAIL: 0, skip: 0 };
for (const [row, { passed, failed, skipped }] of rows) {
  const among = files.filter((file) => named.get(file)?.has(row));
  if (among.length === 0) continue;
  // A file that ended before its tests has told nothing of them.
  const lost = passed.length + failed.length + skipped.length === 0;
  if (lost) failed.push(`${among.join(", ")}: did not run`);
  const outcome = failed.length ? "FAIL" : passed.length ? "pass" : "skip";
  const why = outcome === "skip" ? [...new Set(skipped)] : failed;
  count[outcome] += 1;
  console.log(`${row} ${outcome}${why.length ? ` (${why.join("; ")})` : ""}`);
}
for (const error of errors) console.log(`\n${error}`);
console.log(`\n${count.pass} rows passed, ${count.FAIL} failed, ${count.skip} were skipped`);
for (const what of wrong) console.log(what);
process.exitCode = errors.length + count.FAIL + wrong.length ? 1 : 0;
