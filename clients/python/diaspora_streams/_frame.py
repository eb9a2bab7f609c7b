"""Records as a table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Iterable

from ._consume import Record
from ._errors import DiasporaError, Invalid

if TYPE_CHECKING:
    import pandas


def to_dataframe(records: Iterable[Record], *, metadata: bool = False) -> pandas.DataFrame:
    """Return records as a DataFrame of pandas. Its index is the time of the event, in UTC.

    Each member of a JSON object becomes a column. A value that is not a JSON object is in the
    column "value": JSON is parsed, and other text is a str. With ``metadata``, the columns "record.topic",
    "record.partition", "record.offset", "record.key" and "record.id" come first.

    The test events that "diaspora doctor --topic" logs are left out.

    The records must end: read them with follow=False, or take some with itertools.islice.
    """
    try:
        import pandas
    except ImportError:
        raise DiasporaError("to_dataframe needs pandas; run: pip install pandas") from None
    times, rows = [], []
    for record in records:
        if not isinstance(record, Record):
            raise Invalid("to_dataframe takes the records that consume returns, such as consume(\"weather\", follow=False)")
        if record.key == b"diaspora-doctor" and (record.value or b"").startswith(b'{"diaspora":"doctor"'):
            continue
        row: dict[str, Any] = {}
        if metadata:
            key = None if record.key is None else record.key.decode("utf-8", "replace")
            row = {
                "record.topic": record.topic,
                "record.partition": record.partition,
                "record.offset": record.offset,
                "record.key": key,
                "record.id": record.id,
            }
        value = _value(record.value)
        row.update(value if isinstance(value, dict) else {"value": value})
        times.append(record.time)
        rows.append(row)
    return pandas.DataFrame(rows, index=pandas.DatetimeIndex(pandas.to_datetime(times, utc=True), name="record.time"))


def _value(data: Any) -> Any:
    if data is None:
        return None
    try:
        return json.loads(data)
    except ValueError:
        pass
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data
