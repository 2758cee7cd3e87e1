"""The style sheet of the explorer's pages, kept in a module so that it travels with the package.

Selectors name Streamlit's `data-testid` and `st-key-*` attributes, which its documentation keeps stable, and our own
`ms-*` classes. Colours: ink #1c2733, faint #5b6875, lines #e6eaee, links #2f6f9f.
"""

from __future__ import annotations

STYLE = """
[data-testid="stMainBlockContainer"]{padding:1.1rem 2rem 2.5rem;max-width:1720px}
[data-testid="stHeader"]{display:none}
.st-key-bar{padding-bottom:10px;border-bottom:1px solid #e6eaee}
.st-key-nav a{padding:3px 8px;border-radius:5px;min-height:0}
.st-key-nav{flex-wrap:wrap;row-gap:2px}
[class*="st-key-navgroup-"]{flex-wrap:wrap;padding-left:5px;border-left:1px solid #e6eaee}
.st-key-navgroup-0{padding-left:0;border-left:0}
.st-key-navgroup-0 a p{font-weight:600}
.st-key-which:empty{display:none}
[data-testid="stVerticalBlock"]{gap:.75rem}
[data-testid="stElementToolbar"]{display:none}
.ms-note,.ms-text{margin:0;color:#5b6875;font-size:13.5px;line-height:1.5}
.ms-text code{font-size:13px;color:#1c2733}
.ms-problem{padding:8px 12px;border:1px solid #edc7a6;border-left:3px solid #D55E00;border-radius:4px;
background:#fffaf5;font-size:13.5px;line-height:1.5;overflow-wrap:anywhere}
.ms-problem .dim{color:#5b6875}
h2.ms-h{margin:10px 0 2px;padding:0;font-size:15px;line-height:1.4;font-weight:600;letter-spacing:0;color:#1c2733}
h2.ms-h span{font-weight:400;font-size:13px;color:#5b6875;margin-left:6px}
.ms-foot{display:flex;flex-wrap:wrap;gap:2px 22px;margin:18px 0 0;padding:10px 0 0!important;
border-top:1px solid #e6eaee;font-size:12.5px;color:#5b6875}
.ms-foot div{display:flex;gap:6px;min-width:0}
.ms-foot dt{margin:0;font-weight:400;color:#8693a0}
.ms-foot dd{margin:0;color:#3d4a57;overflow-wrap:anywhere}
.ms-table{border-collapse:collapse;width:100%;font-size:13.5px;line-height:1.45}
.ms-table td,.ms-table th{padding:3px 8px 3px 0;border:0;border-bottom:1px solid #eef1f4;text-align:left;
vertical-align:baseline;font-weight:400}
.ms-table th{color:#5b6875;font-size:12.5px}
.ms-table td.n,.ms-table th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.ms-table td.d{color:#5b6875;font-size:12.5px}
.ms-table tr:last-child td{border-bottom:0}
.ms-walk{font-size:14px;color:#5b6875}
.ms-head{display:flex;flex-wrap:wrap;gap:4px 28px;align-items:baseline;justify-content:space-between;
padding:2px 0 10px;border-bottom:1px solid #e6eaee}
.ms-head .title{display:flex;flex-wrap:wrap;gap:4px 12px;align-items:baseline;min-width:0}
.ms-head .number{font-size:30px;line-height:1.2;font-weight:600;font-variant-numeric:tabular-nums;color:#1c2733}
.ms-head .label{font-size:18px;line-height:1.3;color:#1c2733;overflow-wrap:anywhere}
.ms-head .label .none{color:#a3adb8}
.ms-head.bare{border:0;padding:0}
.ms-star{color:#b07d00;font-size:18px}
.ms-head dl{padding:0;display:flex;flex-wrap:wrap;gap:2px 24px;margin:0}
.ms-head dl div{display:flex;flex-direction:column}
.ms-head dt{margin:0;font-size:12px;font-weight:400;line-height:1.4;color:#5b6875}
.ms-head dd{margin:0;font-size:15px;line-height:1.4;font-variant-numeric:tabular-nums;color:#1c2733}
.ms-answer{padding:8px 10px;border:1px solid #e6eaee;border-radius:6px;background:#fff}
.ms-examples .e{display:grid;grid-template-columns:52px minmax(0,1fr);gap:0 12px;padding:5px 0;
border-bottom:1px solid #eef1f4;align-items:baseline}
.ms-examples .e:last-child{border-bottom:0}
.ms-examples .g{text-align:right;font-size:13.5px;font-variant-numeric:tabular-nums;color:#1c2733;line-height:1.4}
.ms-examples .g small{display:block;font-size:11px;color:#8693a0;line-height:1.3}
.ms-end{display:inline-block;width:1em;text-align:center;color:#5b6875;font-weight:600}
.ms-examples .q{margin:8px 0 2px;font-size:12.5px;font-weight:600;color:#5b6875}
.ms-logits{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:0 16px}
.ms-logits .ms-table{table-layout:fixed}
.ms-logits .c1{width:58%}
.ms-logits .c3{width:52px}
.ms-logits td.tok{overflow:hidden;padding-right:6px}
.ms-logits td.bar{padding:3px 6px 3px 0;vertical-align:middle}
.ms-logits td.bar u{display:block;height:6px;border-radius:3px;background:#0072B2}
.ms-logits td.bar u.neg{background:#D55E00}
.ms-steer{gap:10px 24px}
.ms-said{margin:0;padding:0!important}
.ms-said div{display:grid;grid-template-columns:52px minmax(0,1fr);gap:0 12px;padding:5px 0;
border-bottom:1px solid #eef1f4;font-size:13.5px;line-height:1.5}
.ms-said dt{margin:0;font-weight:400;color:#5b6875}
.ms-said dd{margin:0;overflow-wrap:anywhere;color:#1c2733}
.ms-said dd span{color:#8693a0}
.ms-title{font-size:20px;font-weight:600;color:#1c2733;line-height:1.4}
.ms-title span{margin-left:12px;font-size:13px;font-weight:400;color:#5b6875;overflow-wrap:anywhere}
.ms-run{font-size:13.5px;line-height:1.45}
.ms-run .name{font-size:15px;font-weight:600;color:#1c2733;overflow-wrap:anywhere}
.ms-run .dim{color:#5b6875}
.ms-run dl{padding:0;display:grid;grid-template-columns:1.3fr 1fr .7fr;gap:6px 12px;margin:10px 0 8px}
.ms-run dt{margin:0;font-size:12px;font-weight:400;color:#5b6875;line-height:1.3}
.ms-run dd{margin:0;font-size:16px;font-variant-numeric:tabular-nums;color:#1c2733;line-height:1.35}
.ms-run figure{margin:0}
.ms-run figure img{display:block;width:100%;height:44px}
.ms-run figcaption{display:flex;justify-content:space-between;font-size:12px;color:#5b6875}
.ms-logits.one{grid-template-columns:minmax(0,1fr)}
.ms-logits.one .c1{width:42%}
.ms-number{font-size:13.5px;font-weight:600;color:#5b6875;font-variant-numeric:tabular-nums}
.ms-logits td.tok.on .ms-token{background:#dbe9f4;font-weight:600}
.ms-fire{display:grid;grid-template-columns:112px 46px 58px minmax(0,1fr);gap:10px;align-items:center;
font:13.5px/1.5 "Source Sans",system-ui,sans-serif;font-variant-numeric:tabular-nums}
.ms-fire .v{display:flex;align-items:center;gap:8px}
.ms-fire .v i{display:block;flex:0 0 52px;height:6px;border-radius:3px;background:#e6eaee;overflow:hidden}
.ms-fire .v u{display:block;height:6px;background:#0072B2}
.ms-fire .v u.neg{background:#D55E00}
.ms-fire .r{text-align:right;color:#5b6875}
.ms-fire .w{min-width:0;overflow:hidden;white-space:nowrap;text-overflow:ellipsis}
.ms-fire.head{color:#5b6875;font-size:12px;margin-left:80px}
.ms-layer{font-size:13.5px;line-height:1.5;color:#5b6875;overflow-wrap:anywhere}
.ms-layer b{font-size:15px;font-weight:600;color:#1c2733;margin-right:8px}
[class*="st-key-fire-"]{padding-left:12px;border-left:3px solid transparent}
[class*="st-key-fire-chosen"]{border-left-color:#2f6f9f}
.ms-legend{display:inline-block;width:110px;height:9px;border-radius:3px;margin:0 6px;
background:linear-gradient(90deg,#e9f1f8,#1f6fb2);vertical-align:baseline}
.ms-side{display:grid;grid-template-columns:repeat(5,minmax(78px,1fr)) minmax(150px,1.6fr) minmax(110px,1.2fr);
gap:0 14px;align-items:baseline;padding:4px 0;border-bottom:1px solid #eef1f4;font-size:13.5px;line-height:1.4;
font-variant-numeric:tabular-nums;color:#1c2733}
.ms-side .r{text-align:right;min-width:0}
.st-key-links-sides{overflow-x:auto}
.st-key-links-sides>[data-testid="stLayoutWrapper"]{min-width:980px}
.ms-side small{display:block;font-size:11.5px;line-height:1.35;color:#5b6875;white-space:nowrap}
.ms-side.head,.ms-side-name{color:#5b6875;font-size:12.5px}
.ms-side.head [title]{cursor:help;text-decoration:underline dotted #c9d1d9;text-underline-offset:3px}
.ms-table td.k{color:#5b6875}
.ms-scroll{overflow-x:auto}
.ms-sentence{margin:0;font-size:16px;line-height:1.55;color:#1c2733;max-width:62em;overflow-wrap:anywhere}
.ms-facts{padding:0!important;display:flex;flex-wrap:wrap;gap:8px 26px;margin:0}
.ms-facts div{display:flex;flex-direction:column}
.ms-facts dt{margin:0;font-size:12px;font-weight:400;line-height:1.4;color:#5b6875}
.ms-facts dd{margin:0;font-size:15px;line-height:1.4;font-variant-numeric:tabular-nums;color:#1c2733}
.ms-facts.big dd{font-size:19px}
.ms-facts small{font-size:12px;line-height:1.4;color:#5b6875;font-variant-numeric:tabular-nums}
.ms-facts [title],.ms-table th[title],.ms-state{cursor:help}
.ms-facts div[title] dt,.ms-table th[title]{text-decoration:underline dotted #c9d1d9;text-underline-offset:3px}
.ms-state{display:inline-block;padding:0 8px;border-radius:9px;font-size:12.5px;font-weight:600;line-height:1.6;
background:#f4f6f8;color:#5b6875;border:1px solid #c9d1d9}
.ms-state.kept{background:#e8f1f8;color:#00568a;border-color:#a9cbe2}
.ms-state.blurred{background:#eaf6fd;color:#1b6690;border-color:#aadbf5}
.ms-state.lost{background:#fdf3ea;color:#9a4300;border-color:#edc7a6}
.ms-state.new{background:#edf8f4;color:#0b5c46;border-color:#a9d8c8}
.ms-wide td small{display:block;font-size:11.5px;font-weight:400;line-height:1.35;color:#5b6875}
.ms-wide td{vertical-align:top!important}
.ms-table tr.null td{color:#5b6875}
.ms-table tr.on td{font-weight:600}
.ms-wide td,.ms-wide th{white-space:nowrap;padding-right:16px!important}
.ms-pairs{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:0 28px}
.ms-pairs .h{padding:2px 0 4px;font-size:12.5px;color:#5b6875;border-bottom:1px solid #e6eaee;overflow-wrap:anywhere}
.ms-pairs .e{display:grid;grid-template-columns:62px minmax(0,1fr);gap:0 12px;padding:6px 0;
border-bottom:1px solid #eef1f4;align-items:baseline}
.ms-pairs .g{text-align:right;font-size:13.5px;font-variant-numeric:tabular-nums;color:#1c2733;line-height:1.4}
.ms-pairs .g i{font-style:normal;color:#8693a0;margin-right:3px}
[class*="st-key-split-curves"]>[data-testid="stLayoutWrapper"]>[data-testid="stHorizontalBlock"]>[data-testid="stColumn"]{
min-width:max(31%,min(100%,300px))!important}
.ms-curve{margin:0;font-size:13.5px;font-weight:600;line-height:1.4;color:#3d4a57}
.ms-curve span{font-weight:400;color:#5b6875;margin-left:5px}
.ms-strips .e{display:grid;grid-template-columns:96px minmax(0,1fr);gap:0 12px;padding:5px 0;
border-bottom:1px solid #eef1f4;align-items:baseline}
.ms-strips .e:last-child{border-bottom:0}
.ms-align{border-collapse:separate;border-spacing:0;font-size:13px;line-height:1.4}
.ms-align th{font-weight:400;color:#5b6875;font-size:12px;text-align:left;padding:2px 10px 2px 0;border:0;
position:sticky;left:0;background:#fdfdfe}
.ms-align td{padding:2px 6px;border:0;text-align:center;white-space:pre;color:#8693a0;font-size:12px;
font-variant-numeric:tabular-nums}
.ms-align td.e{font-size:11.5px}
.ms-align td.t{color:#1c2733;font-size:13.5px;border-bottom:1px solid #eef1f4}
.ms-align td.s{color:#a3adb8}
.ms-align td.d{font-weight:600;color:#9a4300}
.ms-align td.on{box-shadow:inset 1.5px 0 0 #1c2733,inset -1.5px 0 0 #1c2733}
.ms-align tr:first-child td.on{box-shadow:inset 1.5px 0 0 #1c2733,inset -1.5px 0 0 #1c2733,inset 0 1.5px 0 #1c2733}
.ms-align tr:last-child td.on{box-shadow:inset 1.5px 0 0 #1c2733,inset -1.5px 0 0 #1c2733,inset 0 -1.5px 0 #1c2733}
.ms-strips .m{font-size:13.5px;line-height:1.35;color:#1c2733;overflow-wrap:anywhere}
.ms-strips .m small{display:block;font-size:11.5px;color:#5b6875;font-variant-numeric:tabular-nums}

.ms-narrow{max-width:760px}
.ms-layers .on{font-weight:600}
[class*="st-key-wide-"]{overflow-x:auto;overflow-y:hidden}
[class*="st-key-wide-"]>*{min-width:880px}
.ms-where{font-size:13.5px;color:#5b6875;overflow-wrap:anywhere}
.ms-where b{font-weight:600;color:#3d4a57}
[class*="st-key-split-"]>[data-testid="stLayoutWrapper"]>[data-testid="stHorizontalBlock"]{flex-wrap:wrap}
[class*="st-key-split-"]>[data-testid="stLayoutWrapper"]>[data-testid="stHorizontalBlock"]>[data-testid="stColumn"]{
min-width:min(100%,390px)}
[class*="st-key-links-"] a{padding:0 6px 0 0;background:none!important;min-height:0;justify-content:flex-start}
[class*="st-key-links-"] a p,[class*="st-key-links-"] a span{color:#2f6f9f;font-size:13.5px;font-weight:600;
font-variant-numeric:tabular-nums}
[class*="st-key-links-"] a:hover{text-decoration:underline}
[class*="st-key-walk"] :is([data-testid="stNumberInputStepUp"],[data-testid="stNumberInputStepDown"]){display:none}
@media (max-width:900px){
.ms-pairs{grid-template-columns:minmax(0,1fr)}
.ms-pairs .h:nth-child(2){display:none}
.ms-pairs .h:first-child{display:none}
.ms-pairs .e:nth-child(odd){border-bottom-style:dashed}
.st-key-split-feature>[data-testid="stLayoutWrapper"]>[data-testid="stHorizontalBlock"]>
[data-testid="stColumn"]:first-child{order:2}
}
"""
