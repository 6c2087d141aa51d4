"""The tables of usage: by the hour, and the sums of days and months that pages and bills read."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from adapters_registry.records.tables import Base, UTCDateTime


class Consumed:
    """The columns with what requests have used, which all tables of usage have."""

    requests: Mapped[int] = mapped_column(BigInteger)
    input_tokens: Mapped[int] = mapped_column(BigInteger)
    output_tokens: Mapped[int] = mapped_column(BigInteger)
    slot_seconds: Mapped[float]
    cold_starts: Mapped[int] = mapped_column(BigInteger)
    flex_input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    flex_output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    priority_input_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")
    priority_output_tokens: Mapped[int] = mapped_column(BigInteger, server_default="0")


class ConsumedBySomeone(Consumed):
    """The columns that also say which tenant has used which adapter, or the base.

    `tenant_id` says which tenant it was, because the name may have passed to another tenant since.
    It is empty for usage by an earlier owner of the name that was recorded without ids.
    """

    tenant_id: Mapped[str] = mapped_column(String(32), primary_key=True)
    tenant: Mapped[str] = mapped_column(String(64), primary_key=True)
    adapter: Mapped[str] = mapped_column(String(192), primary_key=True)


class Usage(ConsumedBySomeone, Base):
    """What a tenant has used of an adapter, or of the base, in an hour.

    Old hours are added up by the day. `hour` is then the first hour of the day.
    """

    __tablename__ = "usage"
    __table_args__ = (
        Index("ix_usage_tenant_hour", "tenant", "hour"),
        Index("ix_usage_tenant_id_hour", "tenant_id", "hour"),
    )

    hour: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True, sort_order=-1)


class DailyUsage(ConsumedBySomeone, Base):
    """The sums of `Usage` by the day (UTC), written in the same transactions."""

    __tablename__ = "usage_of_days"
    __table_args__ = (
        Index("ix_usage_of_days_tenant", "tenant", "day"),
        Index("ix_usage_of_days_tenant_id", "tenant_id", "day"),
        Index("ix_usage_of_days_adapter", "adapter", "day"),
    )

    day: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True, sort_order=-1)


class MonthlyUsage(ConsumedBySomeone, Base):
    """The sums of `Usage` by the month (UTC), written in the same transactions."""

    __tablename__ = "usage_of_months"
    __table_args__ = (
        Index("ix_usage_of_months_tenant", "tenant", "month"),
        Index("ix_usage_of_months_tenant_id", "tenant_id", "month"),
        Index("ix_usage_of_months_adapter", "adapter", "month"),
    )

    month: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True, sort_order=-1)


class TotalUsage(Consumed, Base):
    """The sums of `Usage` over all tenants and adapters by the day (UTC)."""

    __tablename__ = "usage_in_all"

    day: Mapped[datetime] = mapped_column(UTCDateTime, primary_key=True, sort_order=-1)
