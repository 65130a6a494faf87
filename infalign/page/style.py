"""The page's style sheet: system fonts, light and dark, wide, narrow and printed."""

from __future__ import annotations

from infalign.page.palette import css_variables

STYLE = (
    f":root {{ color-scheme: light dark; {css_variables(dark=False)} }}\n"
    f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {css_variables(dark=True)} }} }}\n"
    """
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--paper); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
.page { display: grid; grid-template-columns: 13rem minmax(0, 64rem); gap: 1.6rem 3rem;
  max-width: 82rem; margin: 0 auto; padding: 0 2rem 5rem; }
header { grid-column: 1 / -1; padding: 1.6rem 0 1rem; border-bottom: 1px solid var(--rule); }
nav { position: sticky; top: 1.5rem; align-self: start; font-size: 0.88rem; }
nav ol { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: 0.22rem 0; color: var(--muted); text-decoration: none; }
nav a:hover, nav a:focus-visible { color: var(--text); text-decoration: underline; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 0.4rem; letter-spacing: -0.01em; }
h2 { font-size: 1.4rem; line-height: 1.3; margin: 0 0 0.7rem; }
h3 { font-size: 1.08rem; margin: 1.8rem 0 0.4rem; }
section { padding: 0 0 1.2rem; margin: 0 0 2.2rem; border-bottom: 1px solid var(--rule);
  scroll-margin-top: 1rem; }
section:last-of-type { border-bottom: 0; }
p { margin: 0.5rem 0 0.8rem; max-width: 46rem; }
.lead { color: var(--muted); font-size: 1.05rem; margin: 0; }
.facts { display: flex; flex-wrap: wrap; gap: 0.3rem 1.6rem; margin: 0.9rem 0 0; padding: 0;
  font-size: 0.88rem; list-style: none; color: var(--muted); }
.facts b { color: var(--text); font-weight: 600; } .facts + .facts { margin-top: 0.2rem; }
.facts a { color: inherit; }
.verdict { border-left: 3px solid var(--series-0); padding: 0.1rem 0 0.1rem 0.9rem; }
.cards { display: grid; gap: 1.2rem; margin: 0.2rem 0 0.8rem;
  grid-template-columns: repeat(auto-fit, minmax(min(25rem, 100%), 1fr)); }
.card { border: 1px solid var(--rule); border-radius: 6px; padding: 0.9rem 1.1rem 0.5rem; }
.card h3 { margin: 0; } .card h4 { margin: 0.7rem 0 0.2rem; font-size: 0.92rem; }
.answer { font-size: 1.12rem; font-weight: 650; line-height: 1.35; margin: 0.2rem 0 0.3rem; }
.answer.yes { color: var(--good); } .answer.no { color: var(--bad); }
.card ul, .plain { margin: 0.2rem 0 0.5rem; padding-left: 1.1rem; font-size: 0.92rem;
  line-height: 1.42; }
.card li { margin: 0.15rem 0; }
.three { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.2rem 1rem; margin: 0.6rem 0;
  font-variant-numeric: tabular-nums; }
.three dt { font-size: 0.8rem; font-weight: 400; color: var(--muted); margin: 0; }
.three dd { margin: 0; font-size: 0.84rem; line-height: 1.3; color: var(--muted); }
.three dd b { display: block; font-size: 1.35rem; line-height: 1.25; color: var(--text); }
.note { color: var(--muted); font-size: 0.88rem; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--shade); padding: 0.05em 0.3em; border-radius: 3px; }
.scroll { overflow-x: auto; margin: 0.6rem 0 0.9rem; }
:focus-visible { outline: 2px solid var(--series-0); outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: 0.88rem; padding: 0 0 0.35rem; }
th { text-align: right; font-weight: 600; font-size: 0.82rem; color: var(--muted);
  vertical-align: bottom; line-height: 1.3; }
th, td { padding: 0.42rem 0.7rem; border-bottom: 1px solid var(--rule); }
thead th { border-bottom: 2px solid var(--rule); }
td { text-align: right; white-space: nowrap; }
tbody th { font-size: inherit; font-weight: 400; color: inherit; white-space: nowrap;
  vertical-align: baseline; line-height: inherit; }
th:first-child, td:first-child { padding-left: 0.2rem; }
th:last-child, td:last-child { padding-right: 0.2rem; }
td.text { white-space: normal; min-width: 13rem; }
td { vertical-align: baseline; }
td b { font-weight: 650; }
.range { color: var(--muted); font-size: 0.84em; }
.flag { display: inline-block; font-size: 0.76rem; font-weight: 600; line-height: 1.35;
  padding: 0 0.45em; border: 1px solid currentColor; border-radius: 3px; }
.flag.ok { color: var(--good); } .flag.look { color: var(--bad); }
.flag.note-flag { color: var(--muted); }
figure { margin: 0.8rem 0 1.2rem; }
figure svg { display: block; width: 100%; height: auto; }
figure .scroll { margin: 0; }
figure.half { max-width: 33rem; } figure.two-thirds { max-width: 44rem; }
figcaption { color: var(--muted); font-size: 0.88rem; margin-top: 0.4rem; max-width: 46rem; }
.ruler { stroke: var(--muted); stroke-width: 1; pointer-events: none; }
.probe { font-size: 0.88rem; color: var(--muted); margin: 0.3rem 0 0; max-width: none; }
.probe label { display: flex; align-items: center; gap: 0.7rem; color: var(--text); }
.probe input { flex: 0 1 18rem; min-width: 6rem; accent-color: var(--series-0); }
.said p { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; margin: 0.25rem 0; max-width: none;
  font-variant-numeric: tabular-nums; }
.said b { color: var(--text); }
.said i { display: inline-block; width: 0.6em; height: 0.6em; border-radius: 2px;
  margin-right: 0.4em; }
.example { margin: 1.1rem 0 1.9rem; }
.prompt { background: var(--shade); border-radius: 5px; padding: 0.65rem 0.9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.93rem; }
.draws { display: grid; gap: 0.4rem 1.2rem; margin: 0.6rem 0 0;
  grid-template-columns: repeat(auto-fit, minmax(min(12.5rem, 100%), 1fr)); }
.draws h4 { margin: 0 0 0.2rem; font-size: 0.92rem; }
.draws ol { list-style: none; margin: 0; padding: 0; font-size: 0.9rem; line-height: 1.4; }
.draws li { padding: 0.3rem 0.5rem; border-left: 3px solid transparent; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.draws li.kept { border-left-color: var(--series-0); background: var(--shade); }
.draws small { display: block; font-size: 0.82rem; color: var(--muted);
  font-variant-numeric: tabular-nums; }
dl { margin: 0.4rem 0; } dt { font-weight: 600; margin-top: 0.7rem; }
dd { margin: 0.1rem 0 0; max-width: 46rem; }
@media (max-width: 68rem) {
  .page { display: block; padding: 0 1.1rem 3rem; }
  nav { position: static; margin: 1.2rem 0 2rem; }
  nav ol { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
}
@media screen and (max-width: 44rem) {
  figure svg { min-width: 40rem; } figure.half svg { min-width: 24rem; }
  figure.two-thirds svg { min-width: 30rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  :root { color-scheme: light; }
  body { font-size: 10pt; background: white; }
  .page { display: block; padding: 0; max-width: none; }
  nav, .probe { display: none; }
  header { padding-top: 0; }
  section { border: 0; padding: 0; margin: 0 0 1rem; }
  h2, h3, h4, dt, .prompt, caption, thead, section > p:first-of-type { break-after: avoid; }
  .scroll:not(:has(tr:nth-child(12))) { break-inside: avoid; }
  p, li, tr, figure, .example { break-inside: avoid; } .scroll { overflow: visible; }
  .cards { grid-template-columns: repeat(auto-fit, minmax(8cm, 1fr)); gap: 0.6rem; }
  .card { padding: 0.5rem 0.7rem 0; } .card ul, .card .note { font-size: 8.5pt; }
  .card h3, .answer, .three dd b { font-size: 11pt; } .three dt, .three dd { font-size: 8pt; }
  h2 { margin-top: 0; } h3 { margin-top: 0.8rem; }
  figure svg { max-height: 6cm; } figure.half svg, figure.two-thirds svg { width: auto; }
  .draws { grid-template-columns: repeat(4, 1fr); } .draws ol { font-size: 8pt; }
  thead { display: table-header-group; }
  td, th { padding: 0.2rem 0.35rem; } table { font-size: 8.5pt; }
  td, tbody th { white-space: normal; }
}
"""
)
