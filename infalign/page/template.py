"""The page as a Jinja template: every value is escaped, nothing is loaded from elsewhere.

It is kept as a module, not a data file, so that it is part of the code whose change makes a
finished report stale. `view` says what each name holds.
"""

from __future__ import annotations

TEMPLATE = """\
{%- macro key(policy) -%}
<span class="key" style="background: var(--{{ policy.color }})"></span>{{ policy.name }}
{%- endmacro -%}
{%- macro measured(value) -%}
<b>{{ value.text }}</b>
{%- if value.spread %} <span class="range">{{ value.spread }}</span>{% endif %}
{%- endmacro -%}
{%- macro plot(figure) -%}
<figure class="{{ figure.width }}">
{{ figure.svg }}
<figcaption>{{ figure.caption }}</figcaption>
</figure>
{%- endmacro -%}
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ page.title }}</title>
<style>
{{ style }}
</style>
</head>
<body>
<div class="page">
<header>
<h1>{{ page.title }}</h1>
<p class="lead">{{ page.lead }}</p>
<ul class="facts">
{% for name, value in page.facts %}
<li>{{ name }} <b>{{ value }}</b></li>
{% endfor %}
</ul>
</header>
<nav aria-label="Contents">
<ol>
{% for anchor, title in contents %}
<li><a href="#{{ anchor }}">{{ title }}</a></li>
{% endfor %}
</ol>
</nav>
<main>
<section id="results">
<h2>Results</h2>
{% for objective in page.objectives %}
<h3>{{ objective.name }}, under <code>{{ objective.procedure }}</code></h3>
<p class="verdict">{{ objective.verdict }}</p>
<div class="scroll"><table>
<thead><tr><th>policy</th><th>win rate, %</th><th>limit, %</th><th>method’s<br>limit, %</th>
<th>efficiency, %</th><th>of method’s<br>limit, %</th><th>KL, nats</th><th></th></tr></thead>
<tbody>
<tr class="reference"><td>{{ key(objective.reference) }}</td><td>50.0</td><td></td><td></td>
<td></td><td></td><td>0</td><td></td></tr>
{% for row in objective.rows %}
<tr><td>{{ key(row.policy) }}</td><td>{{ measured(row.win_rate) }}</td><td>{{ row.limit }}</td>
<td>{{ row.method_limit }}</td><td>{{ measured(row.efficiency) }}</td>
<td>{{ row.method_efficiency }}</td><td>{{ measured(row.kl) }}</td>
<td>{% for flag in row.flags %}<span class="flag look">{{ flag }}</span> {% endfor %}</td></tr>
{% endfor %}
</tbody></table></div>
{% if objective.gains %}
<div class="scroll"><table>
<caption>Paired differences of the win rate on the same prompts, in points</caption>
<thead><tr><th>difference</th>{% for judge in objective.judges %}<th>judged by {{ judge }}</th>
{% endfor %}</tr></thead>
<tbody>
{% for gain in objective.gains %}
<tr><td>{{ gain.first }} − {{ gain.second }}</td>
{% for cell in gain.cells %}
<td>{{ measured(cell) }} <span class="flag {{ cell.tone }}">{{ cell.verdict }}</span></td>
{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
{% endfor %}
<p class="note">{{ page.results_note }}</p>
</section>
<section id="health">
<h2>Health of each stage</h2>
<p>{{ page.health_verdict }}</p>
<div class="scroll"><table>
<thead><tr><th>stage</th><th></th><th style="text-align: left">what it measured</th></tr></thead>
<tbody>
{% for line in page.health %}
<tr><td><code>{{ line.stage }}</code></td>
<td><span class="flag {{ 'ok' if line.healthy else 'look' }}">
{{- 'fine' if line.healthy else 'look here' }}</span></td>
<td class="text">{{ line.text }}</td></tr>
{% endfor %}
</tbody></table></div>
</section>
{% for section in page.sections %}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
<p>{{ section.text }}</p>
{% for exhibit in section.exhibits %}
<div>
<h3>{{ exhibit.objective }}</h3>
{% for figure in exhibit.figures %}
{{ plot(figure) }}
{% endfor %}
{% if exhibit.table %}
<div class="scroll"><table>
<thead><tr>{% for name in exhibit.table.columns %}<th>{{ name }}</th>{% endfor %}</tr></thead>
<tbody>
{% for policy, cells in exhibit.table.rows %}
<tr><td>{{ key(policy) }}</td>
{% for cell in cells %}<td>{{ measured(cell) }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
{% endif %}
</div>
{% endfor %}
</section>
{% endfor %}
<section id="responses">
<h2>Responses, side by side</h2>
<p>{{ page.examples_note }}</p>
{% for objective in page.objectives %}
<h3>{{ objective.name }}</h3>
{% for example in objective.examples %}
<div class="example">
<div class="prompt">{{ example.prompt }}</div>
<div class="scroll"><table>
<thead><tr><th>policy</th><th style="text-align: left">response kept</th><th>C</th></tr></thead>
<tbody>
{% for answer in example.answers %}
<tr><td>{{ key(answer.policy) }}</td><td class="text">{{ answer.response }}
{%- if answer.cut %} <span class="flag note-flag">cut</span>{% endif %}</td>
<td>{{ answer.calibrated }}</td></tr>
{% endfor %}
</tbody></table></div>
</div>
{% endfor %}
{% endfor %}
</section>
<section id="reading">
<h2>How to read this page</h2>
{% for paragraph in page.reading %}
<p>{{ paragraph }}</p>
{% endfor %}
</section>
<section id="glossary">
<h2>Glossary</h2>
<dl>
{% for term, meaning in page.glossary %}
<dt>{{ term }}</dt><dd>{{ meaning }}</dd>
{% endfor %}
</dl>
</section>
</main>
</div>
</body>
</html>
"""
