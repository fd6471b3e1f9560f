"""The report's page, words and tables."""

import json
import re
from html.parser import HTMLParser

from tdlm_fast.comparison import findings, report


class _Page(HTMLParser):
    VOID = {"meta", "path", "rect", "circle"}

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_stands_alone(done):
    out, _ = done
    text = (out / "report.html").read_text()
    page = _Page()
    page.feed(text)
    assert not page.open
    names = {t for t, _ in page.tags}
    assert names.isdisjoint({"script", "link", "img", "iframe"}) and "url(" not in text and "@import" not in text
    ids = {a.get("id") for _, a in page.tags}
    links = [v for _, a in page.tags for k, v in a.items() if k in ("src", "href")]
    assert len(links) >= 6 and all(v[0] == "#" and v[1:] in ids for v in links)
    assert "prefers-color-scheme:dark" in text and 'name="viewport"' in text
    result = json.loads((out / "compare.json").read_text())
    output = "".join(page.text)
    for claim in result["claims"]:
        assert claim["claim"] in output and claim["verdict"] in output
    assert len([t for t, _ in page.tags if t == "svg"]) >= 18 and "nan" not in output.lower()
    markdown = (out / "report.md").read_text()
    for name in re.findall(r"\]\((figures/[^)]+)\)", markdown):
        assert (out / name).is_file(), name
    assert findings.paragraph(result) in markdown and findings.paragraph(result) in output.replace("\n", " ")


def test_names_that_hold_html_are_text_in_both_reports(done):
    result = json.loads((done[0] / "compare.json").read_text())
    result["arms"][0]["runs"][0]["summary"]["corpus"] = "<script>x</script> & a|b"
    for arm in result["arms"]:
        arm["label"] = f"<i>{arm['label']}</i>"
    for text in (report.markdown(result, "T"), report.html(result, "T")):
        assert "<script>" not in text and "<i>" not in text and "&lt;i&gt;" in text
