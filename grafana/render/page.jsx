// Draws the panels of a dashboard. Charts and numbers are Grafana's own components; rows, tables and
// log lines are plain HTML. `window.PICTURE` is what pictures.py has asked Prometheus and the log.
import React from 'react';
import { createRoot } from 'react-dom/client';
import {
  createDataFrame, createTheme, dateTime, FieldType, getDisplayProcessor, ThemeContext,
} from '@grafana/data';
import { BigValue, BigValueTextMode, TimeSeries } from '@grafana/ui';

const { from, to, title, rows, marks } = window.PICTURE;
const theme = createTheme({ colors: { mode: 'dark' } });
const { colors } = theme;

// Grafana's grid: 24 columns, 30 pixels a line, 8 between panels.
const COLUMN = 1400 / 24;
const LINE = 38;
const HEADING = 34;

const timeRange = { from: dateTime(from * 1000), to: dateTime(to * 1000) };
timeRange.raw = { from: timeRange.from, to: timeRange.to };

function legendOf({ legend }, labels) {
  return (legend ?? '').replace(/\{\{(\w+)\}\}/g, (_, label) => labels[label] ?? '');
}

// The panel's options for one series: its defaults, and what overrides them by the series' name.
function optionsOf({ defaults, overrides }, name) {
  const options = { ...defaults, custom: { ...defaults.custom } };
  for (const { matcher, properties } of overrides) {
    if (matcher.id !== 'byName' || matcher.options !== name) continue;
    for (const { id, value } of properties) {
      const [scope, key] = id.split('.');
      if (key) options[scope] = { ...options[scope], [key]: value };
      else options[scope] = value;
    }
  }
  return options;
}

function number(panel, name, labels, values, index) {
  const config = { color: { mode: 'palette-classic' }, ...optionsOf(panel.fieldConfig, name), displayName: name };
  config.custom = { lineInterpolation: 'linear', pointSize: 5, axisPlacement: 'auto', ...config.custom };
  const field = { name: 'Value', type: FieldType.number, labels, values, config, state: { seriesIndex: index } };
  field.display = getDisplayProcessor({ field, theme });
  return field;
}

function framesOf(panel, answers, step) {
  const series = answers.flatMap((answer) => answer.series.map((one) => [legendOf(answer, one.metric), one]));
  return series.map(([name, { metric, values }], index) => {
    const frame = createDataFrame({
      name,
      fields: [
        { name: 'Time', type: FieldType.time, values: values.map(([at]) => at * 1000), config: { interval: step * 1000 } },
        { name: 'Value', type: FieldType.number, values: [], config: {} },
      ],
    });
    frame.fields[1] = number(panel, name, metric, values.map(([, value]) => Number(value)), index);
    return frame;
  });
}

// Deployments, as Grafana draws annotations: a dashed line.
function drawMarks(chart) {
  const { ctx, bbox } = chart;
  ctx.save();
  ctx.strokeStyle = colors.primary.text;
  ctx.lineWidth = 2;
  ctx.setLineDash([6, 6]);
  for (const { at } of marks) {
    const x = chart.valToPos(at * 1000, 'x', true);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

function Marks({ config }) {
  React.useState(() => config.addHook('draw', drawMarks));
  return null;
}

function Empty({ panel }) {
  return <div className="empty">{panel.fieldConfig.defaults.noValue ?? 'No data'}</div>;
}

function Chart({ panel, answers, step, width, height }) {
  const frames = framesOf(panel, answers, step);
  if (!frames.length) return <Empty panel={panel} />;
  return (
    <TimeSeries
      frames={frames} width={width} height={height} timeRange={timeRange} timeZone="utc"
      structureRev={1} options={{}} legend={{ calcs: [], ...panel.options.legend }}
    >
      {(config) => <Marks config={config} />}
    </TimeSeries>
  );
}

function Stat({ panel, answers, width, height }) {
  const series = answers.flatMap((answer) => answer.series.map((one) => [legendOf(answer, one.metric), one]));
  if (!series.length) return <Empty panel={panel} />;
  const each = height / series.length;
  return series.map(([name, { metric, values }], index) => {
    const field = number(panel, name, metric, [Number(values.at(-1)[1])], index);
    const value = { ...field.display(field.values[0]), title: name };
    return (
      <BigValue
        key={name} value={value} width={width} height={each} theme={theme} {...panel.options}
        textMode={panel.options.textMode === 'auto' ? BigValueTextMode.Value : panel.options.textMode}
      />
    );
  });
}

function Table({ panel, answers, height }) {
  const { headings, cells } = tableOf(panel, answers);
  if (!cells.length) return <Empty panel={panel} />;
  return (
    <div style={{ height, overflow: 'hidden' }}>
      <table>
        <thead><tr>{headings.map((heading) => <th key={heading}>{heading}</th>)}</tr></thead>
        <tbody>{cells.map((row) => <tr key={row[0]}>{row.map((cell, at) => <td key={headings[at]}>{cell}</td>)}</tr>)}</tbody>
      </table>
    </div>
  );
}

// What Grafana's transformations make of the answers: one row for the same labels, or for each value of
// one label with a column for each value of another; columns renamed.
function tableOf(panel, answers) {
  const found = Object.fromEntries(panel.transformations.map(({ id, options }) => [id, options]));
  const { renameByName: renamed, excludeByName: hidden } = found.organize;
  const matrix = found.groupingToMatrix;
  const corner = matrix && `${matrix.rowField}\\${matrix.columnField}`;
  const rows = new Map();
  const columns = new Set(matrix ? [corner] : Object.keys(renamed).filter((column) => !hidden[column]));
  for (const { ref, series } of answers) {
    for (const { metric, values } of series) {
      const key = matrix ? metric[matrix.rowField] : JSON.stringify(metric);
      const row = rows.get(key) ?? rows.set(key, matrix ? { [corner]: key } : { ...metric }).get(key);
      const column = matrix ? metric[matrix.columnField] : answers.length > 1 ? `Value #${ref}` : 'Value';
      row[column] = Number(values.at(-1)[1]);
      if (matrix) columns.add(column);
    }
  }
  return cellsOf(panel, [...columns], rows, (column) => renamed[column] ?? column);
}

function cellsOf(panel, columns, rows, headingOf) {
  const sortedBy = columns.find((column) => headingOf(column) === panel.options.sortBy[0].displayName);
  const ordered = [...rows.values()].sort((one, other) => ((one[sortedBy] ?? 0) < (other[sortedBy] ?? 0) ? 1 : -1));
  const cells = ordered.map((row) => columns.map((column) => {
    if (typeof row[column] !== 'number') return row[column] ?? panel.fieldConfig.defaults.noValue;
    const { text, suffix } = number(panel, headingOf(column), {}, [], 0).display(row[column]);
    return text + (suffix ?? '');
  }));
  return { headings: columns.map(headingOf), cells };
}

function Log({ lines, panel, height }) {
  if (!lines.length) return <Empty panel={panel} />;
  return (
    <div className="log" style={{ height }}>
      {lines.map(({ at, level, text }, index) => (
        <div key={index}><i className={level} /><time>{at}</time>{text}</div>
      ))}
    </div>
  );
}

const KINDS = { timeseries: Chart, stat: Stat, table: Table, logs: Log };

function Panel({ drawn }) {
  const { panel } = drawn;
  const { x, y, w, h } = panel.gridPos;
  const place = { left: x * COLUMN + 4, top: y * LINE + 4, width: w * COLUMN - 8, height: h * LINE - 8 };
  const Kind = KINDS[panel.type];
  return (
    <section style={place}>
      <h2>{panel.title}</h2>
      <div className={panel.type}>
        <Kind {...drawn} width={place.width - 18} height={place.height - HEADING} />
      </div>
    </section>
  );
}

function Dashboard() {
  const bottom = Math.max(...rows.flatMap(({ row, panels }) => [row, ...panels.map(({ panel }) => panel)]
    .map(({ gridPos }) => gridPos.y + gridPos.h)));
  return (
    <ThemeContext.Provider value={theme}>
      <header>{title}</header>
      <main style={{ height: bottom * LINE }}>
        {rows.map(({ row, panels }) => (
          <React.Fragment key={row.id}>
            <h1 style={{ top: row.gridPos.y * LINE + 6 }}>{row.title}</h1>
            {panels.map((drawn) => <Panel key={drawn.panel.id} drawn={drawn} />)}
          </React.Fragment>
        ))}
      </main>
    </ThemeContext.Provider>
  );
}

createRoot(document.getElementById('dashboard')).render(<Dashboard />);
