"""Models for where there is no Python: a page that runs in the browser, a package for phones."""

from griffinlm.export.description import ExportError as ExportError
from griffinlm.export.mobile import export_mobile as export_mobile
from griffinlm.export.web import export_web as export_web
