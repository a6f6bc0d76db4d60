"""A Markdown text becomes one HTML file with its tables and pictures; HTML in the text is escaped."""

import base64

from versatune_ds.report.document import write_document


def test_a_document_contains_its_tables_and_pictures_and_escapes_html(tmp_path):
    (tmp_path / "dot.png").write_bytes(b"dot")
    markdown = "# A <script>x()</script>\n\n| a | b |\n|---|---:|\n| <i>1</i> | 2 |\n\n![a dot](dot.png)\n"
    html = write_document(markdown, tmp_path / "index.html", title="A < B").read_text()
    assert "<title>A &lt; B</title>" in html
    assert "<h1>A &lt;script&gt;x()&lt;/script&gt;</h1>" in html
    assert "<td>&lt;i&gt;1&lt;/i&gt;</td>" in html
    assert f'<img src="data:image/png;base64,{base64.b64encode(b"dot").decode()}" alt="a dot"' in html
    assert "default-src 'none'" in html
