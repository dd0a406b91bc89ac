"""How our pages look: one frame and one style sheet, in the page itself.

Invariant: a page asks nobody for anything, not even for a font, and is readable on a phone and in the dark.
"""

from html import escape
from typing import Final

_STYLE: Final = """
:root { color-scheme: light dark; --ink: #16211d; --dim: #5b6863; --line: #dfe5e2; --soft: #f3f6f5;
  --paper: #fff; --accent: #0a7f5a; --bad: #a8321f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4ebe8; --dim: #94a39d; --line: #2b3733; --soft: #1a2320;
  --paper: #101714; --accent: #4ed7a5; --bad: #ff9a85; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; color: var(--ink); background: var(--paper);
  max-width: 64rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; overflow-wrap: break-word; }
h1 { font-size: 2.4rem; line-height: 1.15; margin: 0 0 .6rem; letter-spacing: -.025em; }
h2 { font-size: 1.35rem; margin: 2.8rem 0 .7rem; letter-spacing: -.01em; }
h3 { font-size: .8rem; margin: 1.5rem 0 .4rem; color: var(--dim); text-transform: uppercase; letter-spacing: .06em; }
p { margin: .5rem 0; } .lead { font-size: 1.15rem; max-width: 44rem; } .dim { color: var(--dim); }
a { color: var(--accent); text-underline-offset: .18em; }
nav { display: flex; flex-wrap: wrap; gap: .3rem 1.3rem; margin: 1rem 0 0; }
li { margin: .35rem 0; } ol, ul { padding-left: 1.4rem; max-width: 48rem; }
code, pre { font: .86em/1.55 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
code { background: var(--soft); padding: .12em .35em; border-radius: .3em; overflow-wrap: anywhere; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: .5rem; padding: .8rem 1rem;
  margin: .5rem 0; overflow-x: auto; max-height: 24rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .5rem 1rem .5rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-size: .8rem; font-weight: 600; color: var(--dim); }
td.num, th.num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td p { margin: 0; } td .dim { font-size: .92em; }
@media (min-width: 40rem) { td:first-child code { overflow-wrap: break-word; }
  td:first-child:not(.route) code { white-space: nowrap; } }
@media (min-width: 56rem) { td.route, td.route code { white-space: nowrap; } }
.verb { font: 700 .8em/1 ui-monospace, SFMono-Regular, Menlo, monospace; color: var(--accent); min-width: 3.9rem;
  display: inline-block; }
.verb.delete { color: var(--bad); }
details { border: 1px solid var(--line); border-radius: .55rem; margin: .55rem 0; background: var(--paper); }
summary { cursor: pointer; padding: .7rem 1rem; display: flex; flex-wrap: wrap; align-items: baseline;
  gap: .15rem .5rem; list-style: none; }
summary::-webkit-details-marker { display: none; }
summary:hover { background: var(--soft); border-radius: .5rem; }
summary .what { color: var(--dim); } summary .price { margin-left: auto; color: var(--dim); font-size: .9em; }
.inside { padding: 0 1rem 1rem; border-top: 1px solid var(--line); }
@media (max-width: 40rem) {
  body { padding-top: 1.5rem; } h1 { font-size: 2rem; }
  table.rows thead { display: none; }
  table.rows tr { display: block; padding: .6rem 0; border-bottom: 1px solid var(--line); }
  table.rows td { display: block; border: 0; padding: .1rem 0; }
  table.rows td:nth-child(-n+2):not(:last-child), table.rows td.num { display: inline-block; margin-right: .8rem;
    text-align: left; }
  table.rows td.route:nth-child(1) { display: block; margin: 0; }
  table.rows td.num::before { content: attr(data-label) " "; color: var(--dim); font-size: .9em; }
  summary .what { flex-basis: 100%; order: 3; }
}
"""


def page(title: str, body: str) -> str:
    """A whole page around `body`, which is HTML already."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>{body}</body></html>\n"
    )


def inline(text: str) -> str:
    """Escaped text, with what stands between backticks as code."""
    parts = escape(text).split("`")
    return "".join(f"<code>{part}</code>" if index % 2 else part for index, part in enumerate(parts))


def verb(method: str) -> str:
    """An HTTP method, in the colour of what it does."""
    return f'<span class="verb {escape(method.lower())}">{escape(method.upper())}</span>'
