"""The page's style sheet: light and dark, narrow and wide, nothing from outside."""

STYLE = """
:root { color-scheme: light dark;
  --ink: #1b1f24; --muted: #6a737d; --grid: #e4e7eb; --page: #f6f7f9; --card: #ffffff;
  --s1: #0072b2; --s2: #d55e00; --s3: #009e73; --s4: #b3558c; --s5: #b07d00; --s6: #3f8fc4; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e8eb; --muted: #9aa4af; --grid: #2d333b; --page: #12161b; --card: #1b2027;
  --s1: #56b4e9; --s2: #ff8f4a; --s3: #2fc79a; --s4: #e38fc0; --s5: #f0b429; --s6: #8ecbf2; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); line-height: 1.45;
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .4em 0 .3em; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 .5em; }
h3 { font-size: 1rem; margin: 1.2em 0 .4em; overflow-wrap: anywhere; }
p { margin: .4em 0 .8em; max-width: 75ch; overflow-wrap: anywhere; }
.note, figcaption { color: var(--muted); font-size: .87rem; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 18px 18px 14px; margin: 16px 0; }
.tiles { display: grid; gap: 12px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(136px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--grid); border-radius: 10px;
  padding: 12px 14px; }
.tile b { display: block; font-size: 1.4rem; font-weight: 650; line-height: 1.25; }
.tile span { display: block; color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }
.plots { display: grid; gap: 18px 22px;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 310px), 1fr)); }
.plots.two { grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); }
figure { margin: 0; min-width: 0; max-width: 520px; }
figcaption { margin-bottom: 4px; }
figcaption b { color: var(--ink); }
svg.plot { width: 100%; height: auto; display: block; }
svg.plot * { stroke-linejoin: round; stroke-linecap: butt; }
svg.plot text { font-family: inherit !important; }
.wide { overflow-x: auto; margin: 0 0 6px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums;
  width: 100%; }
th, td { text-align: left; padding: 5px 14px 5px 0; border-bottom: 1px solid var(--grid);
  vertical-align: middle; white-space: nowrap; }
thead th { color: var(--muted); font-weight: 500; font-size: .84rem; vertical-align: bottom; }
tbody th { font-weight: 550; max-width: 20rem; overflow: hidden; text-overflow: ellipsis; }
tbody tr:last-child > * { border-bottom: 0; }
.n { text-align: right; }
td small { display: block; max-width: 13rem; white-space: normal; line-height: 1.25;
  color: var(--muted); }
th small { color: var(--muted); }
.bar { display: flex; width: 72px; height: 11px; border-radius: 3px; overflow: hidden;
  background: var(--grid); }
.bar i { height: 100%; flex: none; }
.b1 { background: var(--s1); } .b2 { background: var(--s2); } .b3 { background: var(--s3); }
.b4 { background: var(--s4); } .b5 { background: var(--s5); } .b6 { background: var(--s6); }
.key { display: inline-flex; align-items: center; gap: 6px; margin-right: 14px; }
.key i { width: 11px; height: 11px; border-radius: 2px; display: inline-block; }
.profile { display: block; }
.profile polygon { fill: var(--s1); opacity: .75; }
.profile path { stroke: var(--s2); stroke-width: 1; fill: none; }
details { margin: .8em 0; }
summary { cursor: pointer; font-weight: 550; overflow-wrap: anywhere; }
ul.lines { list-style: none; padding: 0; margin: .4em 0 1em; font-size: .9rem; }
ul.lines li { padding: 3px 0; overflow-wrap: anywhere; }
code { font-size: .85rem; overflow-wrap: anywhere; }
@media (max-width: 560px) { main { padding: 10px 10px 32px; } section { padding: 14px 12px 10px; }
  .tile b { font-size: 1.25rem; } .bar { width: 60px; }
  .tiles { grid-template-columns: repeat(auto-fit, minmax(128px, 1fr)); }
  tbody th { max-width: 12.5rem; } }
@media print { body { background: none; } section, .tile { break-inside: avoid; } }
"""
