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
.page { display: grid; grid-template-columns: 13rem minmax(0, 64rem); gap: 3rem;
  max-width: 82rem; margin: 0 auto; padding: 0 2rem 5rem; }
header { grid-column: 1 / -1; padding: 2.6rem 0 1.4rem; border-bottom: 1px solid var(--rule); }
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
.facts b { color: var(--text); font-weight: 600; }
.verdict { border-left: 3px solid var(--series-0); padding: 0.1rem 0 0.1rem 0.9rem; }
.note { color: var(--muted); font-size: 0.88rem; }
code { font: 0.9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--shade); padding: 0.05em 0.3em; border-radius: 3px; }
.scroll { overflow-x: auto; margin: 0.6rem 0 0.9rem; }
table { border-collapse: collapse; width: 100%; font-size: 0.92rem;
  font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--muted); font-size: 0.88rem; padding: 0 0 0.35rem; }
th { text-align: right; font-weight: 600; font-size: 0.82rem; color: var(--muted);
  vertical-align: bottom; line-height: 1.3; }
th, td { padding: 0.42rem 0.7rem; border-bottom: 1px solid var(--rule); }
thead th { border-bottom: 2px solid var(--rule); }
td { text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0.2rem; }
th:last-child, td:last-child { padding-right: 0.2rem; }
td.text { text-align: left; white-space: normal; }
td b { font-weight: 650; }
.range { color: var(--muted); font-size: 0.84em; }
.reference td { color: var(--muted); }
.key { display: inline-block; width: 0.72em; height: 0.72em; border-radius: 2px;
  margin-right: 0.5em; vertical-align: -0.02em; }
.flag { display: inline-block; font-size: 0.76rem; font-weight: 600; line-height: 1.35;
  padding: 0 0.45em; border: 1px solid currentColor; border-radius: 3px; }
.flag.ok { color: var(--series-2); } .flag.look { color: var(--series-1); }
.flag.note-flag { color: var(--muted); }
figure { margin: 0.8rem 0 1.2rem; }
figure svg { display: block; width: 100%; height: auto; }
figure.half { max-width: 33rem; } figure.two-thirds { max-width: 44rem; }
figcaption { color: var(--muted); font-size: 0.88rem; margin-top: 0.4rem; max-width: 46rem; }
.example { margin: 1.1rem 0 1.7rem; break-inside: avoid; }
.prompt { background: var(--shade); border-radius: 5px; padding: 0.65rem 0.9rem;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.93rem; }
.example td.text { white-space: pre-wrap; overflow-wrap: anywhere; }
.example td { vertical-align: top; } .example td:first-child { white-space: nowrap; width: 9rem; }
dl { margin: 0.4rem 0; } dt { font-weight: 600; margin-top: 0.7rem; }
dd { margin: 0.1rem 0 0; max-width: 46rem; }
@media (max-width: 68rem) {
  .page { display: block; padding: 0 1.1rem 3rem; }
  nav { position: static; margin: 1.2rem 0 2rem; }
  nav ol { display: flex; flex-wrap: wrap; gap: 0 1.2rem; }
}
@media print {
  @page { margin: 16mm 14mm; }
  :root { color-scheme: light; }
  body { font-size: 10pt; background: white; }
  .page { display: block; padding: 0; max-width: none; }
  nav { display: none; }
  header { padding-top: 0; }
  section { border: 0; } h2, h3 { break-after: avoid; }
  table, figure { break-inside: avoid; } .scroll { overflow: visible; }
  td, th { padding: 0.25rem 0.35rem; } table { font-size: 8.5pt; }
}
"""
)
