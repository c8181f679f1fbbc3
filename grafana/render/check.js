// Checks the committed dashboard: its JSON by the types of Grafana's own schema, and each query by
// the grammar of its language.
import { readFileSync } from 'node:fs';
import { fileURLToPath } from 'node:url';
import { parser as logql } from '@grafana/lezer-logql';
import { parser as traceql } from '@grafana/lezer-traceql';
import { parser as promql } from '@prometheus-io/lezer-promql';
import Ajv from 'ajv';
import { createGenerator } from 'ts-json-schema-generator';

const here = (path) => fileURLToPath(new URL(path, import.meta.url));
const TYPES = here('node_modules/@grafana/schema/dist/types/raw/');
const GRAMMARS = { prometheus: promql, loki: logql, tempo: traceql };
// Grafana reads more than these types have: Prometheus' own fields of an annotation, what a variable's
// editor keeps, and what the foundation SDK still writes for the tables of older releases.
const READ_TOO = new Set(['expr', 'titleFormat', 'step', 'definition', 'auto', 'auto_min', 'auto_count', 'footer']);
const wrong = [];

const validators = new Map();
function check(value, file, type, what) {
  const key = `${file} ${type}`;
  if (!validators.has(key)) {
    const schema = createGenerator({ path: `${TYPES}${file}`, type, skipTypeCheck: true }).createSchema(type);
    validators.set(key, new Ajv({ strict: false, allErrors: true }).compile(schema));
  }
  const validate = validators.get(key);
  if (!validate(value)) {
    const errors = validate.errors.filter(({ params }) => !READ_TOO.has(params.additionalProperty));
    for (const { instancePath, message, params } of errors) {
      wrong.push(`${what}${instancePath} ${message} ${JSON.stringify(params)}`);
    }
  }
}

// Grafana puts values in their places before it parses.
function filled(query) {
  return query.replaceAll('${__interval_ms}', '1000').replace(/\$__(rate_interval|interval|range)/g, '1m');
}

function parse(language, query, what) {
  if (!query) wrong.push(`${what}: no query`);
  GRAMMARS[language].parse(filled(query ?? '')).iterate({
    enter(node) {
      if (node.type.isError) wrong.push(`${what}: ${query.slice(0, node.from)} <- is not ${language}'s`);
    },
  });
}

const panelOf = (type) => `composable/${type}/panelcfg/x/types.gen.d.ts`;

const dashboard = JSON.parse(readFileSync(here('../dashboards/session-tracer.json'), 'utf8'));
check(dashboard, 'dashboard/x/types.gen.d.ts', 'Dashboard', 'dashboard');
const placed = dashboard.panels.flatMap((panel) => [panel, ...(panel.panels ?? [])]);
let queries = 0;
for (const panel of placed.filter(({ type }) => type !== 'row')) {
  check(panel.options ?? {}, panelOf(panel.type), 'Options', panel.title);
  if (panel.type === 'timeseries') {
    check(panel.fieldConfig.defaults.custom, panelOf('timeseries'), 'FieldConfig', panel.title);
  }
  for (const target of panel.targets) {
    const { type } = target.datasource;
    parse(type, target.expr ?? target.query, panel.title);
    queries += 1;
  }
}
for (const { name, expr } of dashboard.annotations.list) parse('prometheus', expr, name);

console.log(wrong.join('\n') || `${placed.length} panels and rows, ${queries} queries: nothing is wrong.`);
process.exit(wrong.length ? 1 : 0);
