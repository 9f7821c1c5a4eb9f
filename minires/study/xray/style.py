"""How the page looks."""

STYLE = """
:root { --ink: #1d1d1f; --quiet: #5a5a5a; --rule: #e2e2e2; --accent: #0072B2; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: var(--ink);
       font: 17px/1.6 Charter, "Bitstream Charter", "Sitka Text", Cambria, Georgia, serif; }
main { max-width: 62rem; margin: 0 auto; padding: 3rem 1.5rem 5rem; }
h1, h2, summary, table, .key, figcaption { font-family: system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 2rem; line-height: 1.2; letter-spacing: -0.01em; margin: 0 0 0.6rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 0.5rem; padding-top: 1.1rem; border-top: 1px solid var(--rule); }
p { margin: 0 0 0.8rem; max-width: 46rem; }
.lead { color: var(--quiet); }
.quiet { color: var(--quiet); font-size: 0.92em; }
data { font-variant-numeric: tabular-nums; font-weight: 600; }
figure { margin: 1.2rem 0 0.4rem; }
figure img { display: block; width: 100%; height: auto; }
.key { border-collapse: collapse; margin: 1.4rem 0 0.4rem; font-size: 0.92rem; width: 100%; }
.key th, .key td { padding: 0.4rem 0.8rem 0.4rem 0; text-align: right; border-bottom: 1px solid var(--rule); }
.key th:first-child { text-align: left; font-weight: 400; }
.key thead th { color: var(--quiet); font-weight: 600; }
details { margin-top: 1.6rem; }
summary { cursor: pointer; font-weight: 600; color: var(--accent); }
.wide { overflow-x: auto; }
.wide table { border-collapse: collapse; font-size: 0.82rem; margin-top: 0.8rem; width: 100%; }
.wide th, .wide td { padding: 0.2rem 0.6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
.wide th:first-child { text-align: left; padding-left: 0; }
.wide thead th { color: var(--quiet); }
.wide td data { font-weight: 400; }
@media print { details { display: none; } section { break-inside: avoid; } }
"""
