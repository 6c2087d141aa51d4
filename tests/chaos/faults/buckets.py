"""Faults of the bucket: away, slow, failing, lying."""

from __future__ import annotations

from contextlib import ExitStack

from tests.chaos.bad_bucket import BadBucket, Mood
from tests.chaos.fault import Fault
from tests.chaos.outage import Switch
from tests.chaos.site import Site


class BucketAway(Fault):
    name = "bucket away"
    promise = "no answer of a version that is on disk fails; registrations are refused with 503"
    done = "its connections are cut, and new ones refused"

    def open(self, site: Site) -> None:
        site.postgres()
        server = site.bucket()
        self.bucket, self._off = Switch(server.endpoint), ExitStack()
        site.stack.callback(self.bucket.stop)
        environment = {**server.environment, "AWS_ENDPOINT_URL": self.bucket.url}
        site.start(lambda name: site.replica(name, environment))

    def inject(self, site: Site) -> None:
        self._off.enter_context(self.bucket.off())

    def heal(self, site: Site) -> None:
        self._off.close()


class _MoodyBucket(Fault):
    """The bucket answers, but not as it should."""

    moods: tuple[Mood, ...]
    rounds = 12

    def open(self, site: Site) -> None:
        site.postgres()
        server = site.bucket()
        self.bucket, self._round = BadBucket(server.endpoint), 0
        site.stack.callback(self.bucket.stop)
        environment = {**server.environment, "AWS_ENDPOINT_URL": self.bucket.url}
        site.start(lambda name: site.replica(name, environment))

    def inject(self, site: Site) -> None:
        self.bucket.mood = self.moods[self._round % len(self.moods)]
        self._round += 1

    def heal(self, site: Site) -> None:
        self.bucket.mood = Mood.WELL


class BucketSlowOrFailing(_MoodyBucket):
    name = "bucket slow or failing"
    promise = (
        "no answer of a version that is on disk fails; registrations wait or are refused with 503"
    )
    done = "every answer 2 s late, or 500, in turn"
    moods = Mood.SLOW, Mood.FAILING
    seconds = 2.0, 8.0


class BucketLies(_MoodyBucket):
    name = "bucket lies"
    promise = (
        "no wrong file is ever served or kept; requests that need one get 503; the true file is "
        "fetched as soon as the bucket gives it"
    )
    done = "files read have a wrong byte, are too short, or break off, in turn"
    moods = Mood.WRONG_BYTES, Mood.TRUNCATED, Mood.BROKEN_OFF
    seconds = 3.0, 8.0
