"""Whether mails went to whom they should, and what became of them at their receivers."""

from collections import Counter
from collections.abc import Iterator

from local.demo.cast import PAUSED_CAMPAIGN
from local.demo.checks import Check
from local.demo.expectations import AFTER_UNSUBSCRIBING, AT_THE_END, Expectations, since
from local.demo.findings import Findings
from local.demo.launch import Launch
from local.demo.mailbox import Unsubscribing


def check_mails(launch: Launch, findings: Findings) -> list[Check]:
    """Every check of mails."""
    return [
        *_mails(launch.expectations, launch, findings),
        *_receivers(launch.expectations, findings),
        *_links(launch.expectations, launch.unsubscribing, findings),
    ]


def _mails(expectations: Expectations, launch: Launch, findings: Findings) -> Iterator[Check]:
    accepted = [message for message in findings.messages if message["status"] == "accepted"]
    in_database = Counter((message["type"], message["email"]) for message in accepted)
    for type_ in ("verification", "welcome", "reward_earned", "position_update", "milestone"):
        yield Check(
            f"{type_} mails went to whom they should, as often as they should",
            {email: count for (of, email), count in expectations.mails.items() if of == type_},
            {email: count for (of, email), count in in_database.items() if of == type_},
        )
    if findings.mails is not None:
        sent = Counter((mail.tags.get("type", ""), mail.to[0]) for mail in findings.mails)
        yield Check(
            "SES has exactly the mails that the database says were accepted", dict(in_database), dict(sent)
        )
    people = expectations.cast.people
    silent = {person.email for person in people.values() if person.leaves == "at signup" or person.bounced}
    yield Check(
        "nobody who left at once or whose address bounced got a mail",
        set(),
        silent & {message["email"] for message in accepted},
    )
    yield Check(
        "the paused campaign's mail waited until it went on",
        {person.key for person in expectations.cast.of(PAUSED_CAMPAIGN)},
        launch.parked_mails,
    )
    held = expectations.held(AT_THE_END)
    yield Check(
        "nobody who is held got a reward's mail",
        set(),
        held & {message["person"] for message in accepted if message["type"] == "reward_earned"},
    )
    twice = Counter(
        (message["type"], message["person"])
        for message in accepted
        if message["type"] in ("welcome", "position_update")
    )
    yield Check(
        "nobody got a second welcome or position update", {}, {k: n for k, n in twice.items() if n > 1}
    )
    yield Check(
        "no mail waits any more",
        set(),
        {m["event_id"] for m in findings.messages if m["status"] in ("claimed", "parked")},
    )


def _receivers(expectations: Expectations, findings: Findings) -> Iterator[Check]:
    people = expectations.cast.people
    if findings.mails is not None:
        accepted = [message for message in findings.messages if message["status"] == "accepted"]
        yield Check(
            "SES reported each mail delivered, bounced or complained about, as the script says",
            Counter(
                (m["type"], m["person"], expectations.delivery_status(people[m["person"]], m["type"]))
                for m in accepted
            ),
            Counter((m["type"], m["person"], m["delivery_status"]) for m in accepted),
        )
    yield Check(
        "exactly the addresses that bounced for good or complained are suppressed",
        {
            person.email.lower(): reason
            for person in people.values()
            if (reason := expectations.suppressed(person, AT_THE_END))
        },
        findings.suppressions,
    )
    yield Check(
        "exactly those who unsubscribed are unsubscribed",
        {person.key for person in people.values() if expectations.unsubscribed(person, AT_THE_END)},
        findings.unsubscribed,
    )
    reasons = {reason for _, _, reason in expectations.withheld_mails}
    yield Check(
        "what these must not get any more was withheld, type by type, and nothing else",
        expectations.withheld_mails,
        {
            (message["person"], message["type"], message["reason"])
            for message in findings.messages
            if message["status"] == "skipped" and message["reason"] in reasons
        },
    )


def _links(expectations: Expectations, unsubscribing: Unsubscribing, findings: Findings) -> Iterator[Check]:
    if findings.mails is None:
        return
    yield Check(
        "every unsubscribe link leads to its page, from the mail's text as from its header",
        (dict.fromkeys(unsubscribing.opened, 200), set()),
        (unsubscribing.opened, unsubscribing.not_shown),
    )
    yield Check("opening the links unsubscribed nobody", unsubscribing.before, unsubscribing.after_opening)
    yield Check(
        "the one-click request of everybody who unsubscribes was answered",
        {person.key: 200 for person in expectations.cast.people.values() if person.unsubscribes},
        unsubscribing.clicked,
    )
    addresses = {expectations.cast.people[key].email for key in unsubscribing.clicked}
    yield Check(
        "who has unsubscribed got verification and reward mails after that, and no others",
        Counter(
            (type_, person.email)
            for type_, person, stage in expectations.asked
            if person.unsubscribes
            and since(AFTER_UNSUBSCRIBING, stage)
            and expectations.withheld(person, type_, stage) is None
        ),
        Counter(
            (mail.tags["type"], mail.to[0])
            for mail in findings.mails
            if mail.number > unsubscribing.last_mail and mail.to[0] in addresses
        ),
    )
