"""User names and passwords in addresses: left out of whatever is shown or stored, and sent as a header."""

import base64
import re
from urllib.parse import unquote, urlsplit, urlunsplit

MASK = "***"
# A login ends at the last @ before the path. A password that is not quoted may hold a slash; then what follows the
# first colon is no port.
LOGIN = re.compile(r"(?<=://)(?:[^\s/@:'\"`]*:(?!\d*(?:[/?#\s'\"`]|$))[^\s'\"`]*@|[^\s/?#'\"`]*@)")
BARE_LOGIN = re.compile(r"(?<![\w/:.@-])[^\s/:@'\"`]+:[^\s/@'\"`]+@(?=[\w\[])")
SECRET_OPTION = re.compile(
    r"([?&;](?:user(?:name)?|[\w.-]*(?:pass|pwd|token|secret|credential|signature)[\w.-]*)=)[^&;#\s'\"`]+",
    re.IGNORECASE,
)


def mask(text: str) -> str:
    """A text with `***` for each user and password that an address in it has: for messages, files and pages."""
    text = SECRET_OPTION.sub(rf"\g<1>{MASK}", LOGIN.sub(f"{MASK}@", text))
    return BARE_LOGIN.sub(f"{MASK}@", text)


def split_login(url: str) -> tuple[str, dict[str, str]]:
    """A URL without its login, and the header that has it: urllib takes a login for part of the host's name."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, {}
    user, _, password = login.partition(":")
    words = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return urlunsplit(parts._replace(netloc=host)), {"Authorization": f"Basic {words}"}
