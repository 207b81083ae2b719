"""The report as a reader sees it."""

from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects what a page would load, and its content by section: the id of the last heading.

    Attributes:
        tags, loaded, links: names of elements, addresses that are loaded, targets of links.
        rows: by section, the texts of the cells of each table row.
        terms: the description <dd> of each term <dt>, and the value of each tile.
        paragraphs: by section, the text of each <p>.
        svg: by section, the texts within drawings.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.paragraphs: dict[str, list[str]] = {}
        self.svg: dict[str, list[str]] = {}
        self.terms: dict[str, str] = {}
        self._section = self._term = self._text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "href" and tag == "a":
                self.links.append(value or "")
            elif name in ("src", "srcset", "data", "poster", "href", "xlink:href"):
                self.loaded.append(value or "")
            if name == "id" and tag == "h2":
                self._section = value or ""
        if tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        if tag in ("td", "th", "dt", "dd", "p", "text"):
            self._text = ""

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        text = " ".join(self._text.split())
        if tag in ("td", "th"):
            self.rows[self._section][-1].append(text)
        elif tag == "dt":
            self._term = text
        elif tag == "dd":
            self.terms.setdefault(self._term, text)
        elif tag == "p":
            self.paragraphs.setdefault(self._section, []).append(text)
        elif tag == "text":
            self.svg.setdefault(self._section, []).append(text)
