"""The launch, moment by moment: what services write and publish, and when the schedules run."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import psycopg

from campaign_jobs.database.connection import Connection
from campaign_jobs.events import (
    EmailJobPayload,
    EmailType,
    Payload,
    PositionRecalcJobPayload,
    RewardDeliveryJobPayload,
)
from campaign_jobs.fraud import cases
from campaign_jobs.reward.settlement import deliver_manually
from local.aws import ScriptLine
from local.demo import mailbox, services
from local.demo.cast import PAUSED_CAMPAIGN, Cast, Person
from local.demo.expectations import (
    AFTER_FRAUD,
    AFTER_SIGNUPS,
    AFTER_UNSUBSCRIBING,
    AFTER_VERIFYING,
    Expectations,
    ExpectedReward,
)
from local.demo.findings import Standing, leaderboard, parked_mails, unsubscribed_people
from local.demo.mailbox import Unsubscribing
from local.demo.publishing import Asked, Publisher
from local.system import LocalSystem

# Long enough for a service to commit what it has published about, short enough to see the others give up.
MISSING_ROW_PATIENCE_SECONDS: Final = 8
COMMITS_LATER_BY_SECONDS: Final = 1.5
FUNCTION_SETTINGS: Final = {
    "MISSING_ROW_PATIENCE": f"{MISSING_ROW_PATIENCE_SECONDS}s",
    "RETRY_FIRST_DELAY": "1s",
}
QUIET_TIMEOUT_SECONDS: Final = 300

Ask = tuple[Payload, Asked]


class Progress(Protocol):
    """How the launch shows that it goes on."""

    def moment(self, title: str) -> None: ...

    def waiting(self, unfinished: dict[str, int]) -> None: ...

    def quiet(self) -> None: ...


class Launch:
    """Plays the script on a running system."""

    def __init__(
        self, cast: Cast, system: LocalSystem, publisher: Publisher, urls: dict[str, str], progress: Progress
    ) -> None:
        self.cast = cast
        self.expectations = Expectations(cast)
        self.boards: dict[str, list[Standing]] = {}
        self.fraud_reports: list[dict[str, Any]] = []
        self.parked_mails: set[str] = set()
        """Whose mail was waiting for the paused campaign after the first moment."""
        self.unsubscribing: Unsubscribing
        """Known once that moment has been played."""
        self._system = system
        self._publisher = publisher
        self._urls = urls
        self._progress = progress

    def play(self) -> None:
        """Everything, in order. Raises TimeoutError where the system does not come to rest."""
        moments: Sequence[tuple[str, Callable[[], None]]] = (
            ("People sign up, some with dead addresses; malformed events come along", self.sign_up),
            ("They follow their links, one complains; the paused campaign goes on", self.verify),
            ("A scanner opens links of mails; some people unsubscribe by theirs", self.unsubscribe),
            ("The fraud schedule runs; the resumed campaign's people verify", self.look_for_fraud),
            ("Rewards and milestones go out by email, webhook and hand", self.reward),
            ("Somebody decides the cases and writes a card by hand", self.decide),
        )
        for title, moment in moments:
            self._progress.moment(title)
            moment()
            self._ask_for_positions(title)
            self._system.wait_until_quiet(
                timeout_seconds=QUIET_TIMEOUT_SECONDS, on_look=self._progress.waiting
            )
            self._progress.quiet()
            with self._services() as connection:
                self.boards[moment.__name__] = leaderboard(connection, self.cast)
                self.parked_mails |= parked_mails(connection, self.cast)
        self._progress.moment("The analytics schedule runs, and the fraud schedule once more")
        self._system.schedules["analytics"].fire()
        self.fraud_reports.append(self._system.schedules["fraud"].fire())
        self._progress.quiet()

    # The moments

    def sign_up(self) -> None:
        cast = self.cast
        self._let_ses_play(mailbox.bounces(cast))
        everybody = list(cast.people.values())
        in_time, late = [p for p in everybody if not p.late], [p for p in everybody if p.late]
        with self._services() as connection:
            services.create_campaigns(connection, cast, self._urls)
            services.sign_up(connection, cast, in_time)
            services.suppress_and_unsubscribe(connection, cast)
        self._publisher.publish(self._verification_mails(in_time))
        self._publisher.publish(self._hopeless())
        self._publisher.publish_bad(cast.bad_records)
        # Last, so that the wait for their rows is short however many people there are.
        self._publisher.publish(self._verification_mails(late))
        time.sleep(COMMITS_LATER_BY_SECONDS)
        with self._services() as connection:
            services.sign_up(connection, cast, late)

    def verify(self) -> None:
        self._let_ses_play(mailbox.bounces(self.cast) + mailbox.complaints(self.cast))
        verifying = self._verifying(AFTER_VERIFYING, before=AFTER_SIGNUPS)
        with self._services() as connection:
            services.verify(connection, self.cast, verifying)
            services.earn(connection, self.cast, self._earned(AFTER_VERIFYING, before=AFTER_SIGNUPS))
            services.set_status(connection, self.cast.campaign_id(PAUSED_CAMPAIGN), "active")
        self._publisher.publish(
            self._welcomes(verifying)
            + [
                # Whoever has verified asks in vain; who complains meanwhile, for one reason or another.
                self._mail(person, "verification", "too late", "skipped")
                for person in verifying[::15]
                if not person.complains
            ]
        )

    def unsubscribe(self) -> None:
        def unsubscribed() -> set[str]:
            with self._services() as connection:
                return unsubscribed_people(connection, self.cast)

        self.unsubscribing = mailbox.unsubscribe(self.cast, self._system.mail_directory, unsubscribed)
        asks: list[Ask] = []
        for person in self.cast.people.values():
            if person.asks_again:
                withheld = self.expectations.withheld(person, "verification", AFTER_UNSUBSCRIBING)
                asks.append(self._mail(person, "verification", "again", "skipped" if withheld else "done"))
        self._publisher.publish(asks)

    def look_for_fraud(self) -> None:
        verifying = self._verifying(AFTER_FRAUD, before=AFTER_UNSUBSCRIBING)
        with self._services() as connection:
            services.verify(connection, self.cast, verifying)
            services.earn(connection, self.cast, self._earned(AFTER_FRAUD, before=AFTER_UNSUBSCRIBING))
        self._publisher.publish(self._welcomes(verifying))
        self.fraud_reports.append(self._system.schedules["fraud"].fire())

    def reward(self) -> None:
        cast = self.cast
        asks: list[Ask] = []
        once: list[Ask] = []
        late = self._late_rewards()
        for number, reward in enumerate(self.expectations.user_rewards):
            id_ = services.user_reward_id(cast, reward)
            name = f"deliver/{reward.reward}/{reward.person}"
            outcomes: tuple[str, ...] = (reward.delivery,)
            payload: Payload = RewardDeliveryJobPayload(user_reward_id=id_)
            if reward.status == "failed":
                # Another event would try it anew.
                once.append((payload, self._asked(name, outcomes)))
                continue
            if number % 5 == 0:
                # Two services notice the same reward; the second event finds the work done.
                outcomes += ("skipped",)
            asks.append((payload, self._asked(name, sorted(outcomes))))
        for number, (key, milestone) in enumerate(self.expectations.milestones()):
            person = cast.people[key]
            payload = EmailJobPayload(
                type="milestone",
                campaign_id=cast.campaign_id(person.campaign),
                user_id=cast.user_id(key),
                milestone=milestone,
                template_data={"badge": f"{milestone} friends"},
            )
            outcomes = ("done",) if self.expectations.gets("milestone", person) else ("skipped",)
            if number % 4 == 0:
                outcomes += ("skipped",)
            asks.append((payload, self._asked(f"milestone/{key}/{milestone}", sorted(outcomes))))
        self._publisher.publish(asks)
        self._publisher.publish(once, repeats=False)
        time.sleep(COMMITS_LATER_BY_SECONDS)
        with self._services() as connection:
            services.earn(connection, cast, late)

    def decide(self) -> None:
        cast = self.cast
        with self._services() as connection:
            for person in cast.people.values():
                if person.decision is None:
                    continue
                row = connection.execute(
                    "SELECT id FROM campaign_jobs.fraud_cases WHERE user_id = %s AND status = 'open'",
                    (cast.user_id(person.key),),
                ).fetchone()
                # Without a case there is nothing to decide, and the checks will say that it is missing.
                if row is None:
                    continue
                if person.decision == "dismiss":
                    cases.dismiss(
                        connection, row[0], reason="Siblings who share a tablet; the service has asked them."
                    )
                else:
                    cases.confirm(connection, row[0], reason="A program signed them all up within the hour.")
            for reward in self._by_hand():
                deliver_manually(connection, services.user_reward_id(cast, reward))
        self._publisher.publish(
            [
                (
                    EmailJobPayload(
                        type="reward_earned",
                        campaign_id=cast.campaign_id(cast.people[reward.person].campaign),
                        user_id=cast.user_id(reward.person),
                        user_reward_id=services.user_reward_id(cast, reward),
                    ),
                    self._asked(f"card is written/{reward.person}", ["done"]),
                )
                for reward in self._by_hand()
            ]
        )

    # Their parts

    def _verifying(self, stage: str, *, before: str) -> list[Person]:
        return [
            person
            for person in self.cast.people.values()
            if self.expectations.has_verified(person, stage)
            and not self.expectations.has_verified(person, before)
        ]

    def _late_rewards(self) -> list[ExpectedReward]:
        """Those that the service commits only after it has published the events about them."""
        return self.expectations.user_rewards[3::11]

    def _earned(self, stage: str, *, before: str) -> list[ExpectedReward]:
        """Those that the service commits in time."""
        others = [*self.expectations.earned(before), *self._late_rewards()]
        return [reward for reward in self.expectations.earned(stage) if reward not in others]

    def _by_hand(self) -> list[ExpectedReward]:
        return [
            reward
            for reward in self.expectations.user_rewards
            if self.cast.rewards[reward.reward].method == "manual" and reward.status == "delivered"
        ]

    def _verification_mails(self, people: Sequence[Person]) -> list[Ask]:
        return [
            self._mail(
                person,
                "verification",
                str(number),
                "done" if self.expectations.gets("verification", person) else "skipped",
                priority=number,
            )
            for person in people
            for number in range(1, person.verification_requests + 1)
        ]

    def _welcomes(self, people: Sequence[Person]) -> list[Ask]:
        asks = []
        for number, person in enumerate(people):
            outcome = "done" if self.expectations.gets("welcome", person) else "skipped"
            asks.append(self._mail(person, "welcome", "1", outcome))
            # Of who complains, the second could be withheld for one reason or another.
            if number % 9 == 0 and not person.complains:
                payload, asked = asks[-1]
                twice = self._asked(asked.about, sorted([outcome, "skipped"]))
                asks[-1] = (payload, twice)
        return asks

    def _hopeless(self) -> list[Ask]:
        asks: list[Ask] = []
        payload: Payload
        for event in self.cast.hopeless_events:
            data = self.cast.resolved(event.data)
            if event.queue == "email":
                payload = EmailJobPayload.model_validate(data)
            elif event.queue == "position":
                payload = PositionRecalcJobPayload.model_validate(data)
            else:
                payload = RewardDeliveryJobPayload.model_validate(data)
            asks.append((payload, Asked(event.name, (self.hopeless_id(event.name),), ("rejected",))))
        return asks

    def hopeless_id(self, name: str) -> str:
        return str(self.cast.names.uuid("event", f"hopeless/{name}"))

    def _mail(self, person: Person, type: EmailType, which: str, outcome: str, *, priority: int = 0) -> Ask:
        payload = EmailJobPayload(
            type=type,
            campaign_id=self.cast.campaign_id(person.campaign),
            user_id=self.cast.user_id(person.key),
            priority=priority,
        )
        return payload, self._asked(f"{type}/{person.key}/{which}", [outcome])

    def _ask_for_positions(self, moment: str) -> None:
        """As a service does after whatever moves somebody. The first request sets the points, before they matter."""
        first = not self.boards
        asks: list[Ask] = []
        for campaign in self.cast.campaigns.values():
            payload = PositionRecalcJobPayload(
                campaign_id=self.cast.campaign_id(campaign.key),
                points_per_referral=campaign.points_asked_for if first else 0,
            )
            asks.append((payload, self._asked(f"positions/{campaign.key}/{moment}", ["done"])))
        self._publisher.publish(asks)

    def _asked(self, name: str, outcomes: Sequence[str]) -> Asked:
        """As many events as outcomes, each with an id of its own."""
        ids = tuple(
            str(self.cast.names.uuid("event", f"{name}#{number}")) for number in range(1, len(outcomes) + 1)
        )
        return Asked(name, ids, tuple(outcomes))

    def _let_ses_play(self, script: Sequence[ScriptLine]) -> None:
        if self._system.servers.aws is not None:
            self._system.servers.aws.play(script)

    @contextmanager
    def _services(self) -> Iterator[Connection]:
        """One transaction of the services."""
        with psycopg.connect(self._system.servers.database_url) as connection:
            yield connection
