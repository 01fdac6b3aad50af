"""How a benchmark's page looks. Colours are those of Okabe and Ito, which differ to all eyes."""

LIGHT = """
--paper:#fff;--ink:#16202c;--soft:#5b6775;--rule:#d9dee4;--grid:#e8ebef;--tile:#f5f7f9;--bad:#b3261e;
--shm:#0072b2;--inline:#c65300;--bare:#6b7280;
--transport:#a9b1bb;--queue:#cc79a7;--copy:#56b4e9;--preprocess:#009e73;--run:#0072b2;--postprocess:#e69f00;
"""
DARK = """
--paper:#12181f;--ink:#e8edf2;--soft:#9aa7b4;--rule:#33404d;--grid:#232d37;--tile:#1b232c;--bad:#ff8a80;
--shm:#56b4e9;--inline:#f0934a;--bare:#9aa3af;
--transport:#717c88;--queue:#cc79a7;--copy:#56b4e9;--preprocess:#00a87b;--run:#2b8fd0;--postprocess:#e69f00;
"""
WAYS = ("shm", "inline", "bare")
STAGES = ("transport", "queue", "copy", "preprocess", "run", "postprocess")
COLOURS = "".join(f".fill.{one}{{fill:var(--{one})}}" for one in (*WAYS, *STAGES)) + "".join(
    f".stroke.{one},.thin.{one}{{stroke:var(--{one})}}.band.{one}{{fill:var(--{one})}}text.{one}{{fill:var(--{one})}}"
    f".key.{one}{{background:var(--{one})}}"
    for one in WAYS
)

STYLE = f"""
:root{{color-scheme:light dark;{LIGHT}}}
@media (prefers-color-scheme:dark){{:root{{{DARK}}}}}
@media print{{:root{{color-scheme:light;{LIGHT}}}*{{print-color-adjust:exact;-webkit-print-color-adjust:exact}}}}
@page{{size:A4 landscape;margin:12mm}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif}}
main{{max-width:1200px;margin:0 auto;padding:36px 40px 48px}}
h1{{font-size:34px;line-height:1.2;margin:0 0 14px;overflow-wrap:anywhere}}
h2{{font-size:19px;margin:0 0 12px}}
p{{margin:0 0 8px}}
.kicker{{color:var(--soft);font-weight:600;letter-spacing:.02em;margin:0 0 2px}}
.verdict{{font-size:21px;line-height:1.4;max-width:60em;margin-bottom:12px;overflow-wrap:anywhere}}
.also{{max-width:70em}}
.note{{color:var(--soft);font-size:13px;margin-top:8px}}
section{{margin-top:36px;break-inside:avoid}}
.tiles{{display:grid;grid-template-columns:repeat(auto-fit,minmax(180px,1fr));gap:12px;margin-top:24px}}
.tile{{background:var(--tile);border-radius:8px;padding:14px 16px}}
.tile b,.tile small{{display:block;font-weight:500;font-size:13px;color:var(--soft)}}
.tile span{{display:block;font-size:30px;line-height:1.3;font-weight:600;font-variant-numeric:tabular-nums}}
.tile i{{font-size:15px;font-style:normal;font-weight:500;color:var(--soft)}}
.panels{{display:grid;grid-template-columns:repeat(3,1fr);gap:20px}}
@media screen and (max-width:900px){{.panels,.about{{grid-template-columns:1fr!important}}main{{padding:20px}}section{{overflow-x:auto}}}}
svg{{display:block;width:100%;height:auto;font-size:13px}}
svg text{{fill:var(--ink)}}
svg .tick,svg .label{{fill:var(--soft)}}
svg .tick{{font-size:12px}}
svg .name{{font-weight:600;font-size:13px}}
svg .small{{font-size:12px}}
svg .inside{{font-size:12px;fill:#fff;font-weight:600}}
svg .on-copy,svg .on-postprocess,svg .on-transport,svg .on-queue{{fill:#10161d}}
.grid{{stroke:var(--grid);stroke-width:1}}
.axis{{stroke:var(--rule);stroke-width:1}}
.mark{{stroke:var(--ink);stroke-width:1.2}}
.stroke{{fill:none;stroke-width:2.4;stroke-linejoin:round}}
.thin{{fill:none;stroke-width:1.2;stroke-linejoin:round}}
.band{{opacity:.14}}
{COLOURS}
.fill.bad,svg text.bad{{fill:var(--bad)}}
table{{border-collapse:collapse;width:100%;font-size:13.5px;font-variant-numeric:tabular-nums}}
th,td{{padding:5px 8px;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}}
th:first-child{{text-align:left;font-weight:500}}
thead th{{color:var(--soft);font-weight:600;border-bottom:1px solid var(--rule);white-space:normal;vertical-align:bottom}}
.kind th{{padding-top:16px;font-weight:600;color:var(--ink)}}
.key{{display:inline-block;width:9px;height:9px;border-radius:2px;margin-right:8px}}
td.bad{{color:var(--bad);font-weight:600}}
.about{{display:grid;grid-template-columns:1fr 1fr;gap:40px;font-size:13.5px}}
dl{{display:grid;grid-template-columns:max-content 1fr;gap:3px 18px;margin:0}}
dt{{color:var(--soft)}}dd{{margin:0;overflow-wrap:anywhere}}
.warn{{border-left:3px solid var(--postprocess);padding-left:10px}}
@media print{{main{{max-width:none;padding:0}}section{{margin-top:22px}}h2{{break-after:avoid}}.tiles{{margin-top:16px}}}}
"""
