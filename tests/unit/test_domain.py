"""Which state allows what, and which provider calls a command consists of."""

import pytest
from msgspec.structs import replace
from spawn_providers.base import Change, InstanceStatus, Spec, Verb
from spawn_providers.catalog import Offer
from spawn_schemas.errors import Code, SpawnError
from spawn_schemas.ids import ActionId, Address, ServerId
from spawn_schemas.money import Usdc

from spawn.domain import operations as plans
from spawn.domain.operations import Act, Create, Delete, OperationStatus, Phase, Plan, new_operation
from spawn.domain.pins import pin_of
from spawn.domain.servers import FINAL, Command, Server, Status, check_allowed, check_resize, status_of

NOW = 1_790_000_000
SERVER = Server(
    id=ServerId("srv_1"),
    wallet=Address("0x" + "1" * 40),
    name="web",
    type="small",
    image="ubuntu-24.04",
    location="nbg1",
    network="dual",
    ssh_keys=(),
    provider="simulated",
    provider_type="cx23",
    provider_ref="1",
    architecture="x86",
    cores=2,
    memory_gb=4,
    disk_gb=40,
    status=Status.RUNNING,
    auto_renew=True,
    created_at=NOW,
    daily_usdc=Usdc(150_000),
    charged_until=NOW,
    capped_s=31 * 86_400,
    priced_at=0,
    cost_daily_usdc=None,
    cost_capped_s=31 * 86_400,
    cost_step_s=1,
)
MEDIUM = Offer(
    type="medium",
    location="nbg1",
    provider_type="cx33",
    architecture="x86",
    cores=4,
    memory_gb=8,
    disk_gb=80,
    daily_usdc=Usdc(220_000),
    deposit_usdc=Usdc(7_500_000),
)
ALLOWED = {
    Command.START: {Status.OFF, Status.RUNNING},
    Command.STOP: {Status.RUNNING},
    Command.POWEROFF: {Status.RUNNING, Status.STOPPING},
    Command.REBOOT: {Status.RUNNING},
    Command.RESIZE: {Status.RUNNING, Status.OFF},
    Command.REBUILD: {Status.RUNNING, Status.OFF},
}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("command", ALLOWED)
def test_each_state_allows_what_it_should_and_refuses_the_rest(command: Command, status: Status) -> None:
    server = replace(SERVER, status=status)
    if status in ALLOWED[command]:
        check_allowed(server, command)
        return
    with pytest.raises(SpawnError) as refused:
        check_allowed(server, command)
    assert refused.value.code is Code.CONFLICT
    assert refused.value.details == {"status": status.value}


def test_a_machine_in_any_state_has_a_word_for_callers_that_is_not_final() -> None:
    shown = {status_of(status) for status in InstanceStatus}
    assert not shown & FINAL, "only our books say that a server has ended, never a provider's report"


def test_a_server_has_a_meter_exactly_while_it_costs_money() -> None:
    assert replace(SERVER, charged_until=None).meter is None
    meter = SERVER.meter
    assert meter is not None
    assert (meter.daily_usdc, meter.charged_until) == (150_000, NOW)


def test_a_server_may_grow() -> None:
    check_resize(SERVER, MEDIUM)


@pytest.mark.parametrize(
    ("offer", "why"),
    [
        (replace(MEDIUM, provider_type="cx23"), "already is"),
        (replace(MEDIUM, architecture="arm"), "cannot move from x86 to arm"),
        (replace(MEDIUM, disk_gb=20), "never shrinks"),
    ],
)
def test_what_a_machine_cannot_become_is_a_conflict(offer: Offer, why: str) -> None:
    with pytest.raises(SpawnError, match=why) as refused:
        check_resize(SERVER, offer)
    assert refused.value.code is Code.CONFLICT


def resize(status: Status) -> Plan:
    server = replace(SERVER, status=status)
    return plans.resize_plan(
        server,
        MEDIUM,
        pin_of(MEDIUM, eur_usdc=Usdc(1_080_000)),
        upgrade_disk=True,
        reserve_delta_usdc=Usdc(5),
    )


def verbs(plan: Plan) -> list[Verb]:
    return [step.verb for step in plan.steps if isinstance(step, Act)]


def test_a_running_server_is_stopped_resized_and_started_again_whatever_happens() -> None:
    plan = resize(Status.RUNNING)
    assert verbs(plan) == [Verb.SHUTDOWN, Verb.RESIZE, Verb.START]
    assert plan.always_from == 2
    assert plan.resized is not None
    assert (plan.resized.type, plan.resized.pin.daily_usdc, plan.resized.reserve_delta_usdc) == (
        "medium",
        220_000,
        5,
    )


def test_a_server_that_was_off_stays_off() -> None:
    plan = resize(Status.OFF)
    assert verbs(plan) == [Verb.RESIZE, Verb.POWEROFF]
    assert plan.always_from == 1


def test_a_shutdown_before_a_resize_becomes_a_poweroff_and_one_by_itself_never_does() -> None:
    (before_resize, *_), (alone,) = resize(Status.RUNNING).steps, plans.stop_plan().steps
    assert isinstance(before_resize, Act)
    assert isinstance(alone, Act)
    assert before_resize.force_after_s == plans.GRACEFUL_S
    assert alone.force_after_s is None


@pytest.mark.parametrize(
    ("plan", "step"),
    [
        (plans.start_plan(), Act(verb=Verb.START, until=InstanceStatus.RUNNING)),
        (plans.stop_plan(), Act(verb=Verb.SHUTDOWN, until=InstanceStatus.OFF)),
        (plans.poweroff_plan(), Act(verb=Verb.POWEROFF, until=InstanceStatus.OFF)),
        (plans.reboot_plan(), Act(verb=Verb.REBOOT, until=InstanceStatus.RUNNING)),
        (
            plans.rebuild_plan("debian-12", ("ssh-ed25519 A",)),
            Act(
                verb=Verb.REBUILD,
                change=Change(image="debian-12", public_keys=("ssh-ed25519 A",)),
                until=InstanceStatus.RUNNING,
            ),
        ),
        (plans.destroy_plan(not_before=7), Delete(not_before=7)),
    ],
)
def test_the_other_commands_are_one_call(plan: Plan, step: Act | Delete) -> None:
    assert plan.steps == (step,)


def test_a_new_operation_is_due_at_once_and_has_asked_nobody() -> None:
    spec = Spec(
        hostname="web",
        provider_type="cx23",
        image="ubuntu-24.04",
        location="nbg1",
        owner=SERVER.wallet,
        public_keys=(),
        ipv6_only=False,
    )
    operation = new_operation(ActionId("act_1"), SERVER, Command.CREATE, plans.create_plan(spec), NOW)
    assert (operation.status, operation.phase, operation.next_at) == (
        OperationStatus.RUNNING,
        Phase.QUEUED,
        NOW,
    )
    assert operation.current == Create(spec=spec)
    assert operation.deadline_at == NOW + 900


def test_every_command_ends_some_day_but_destroying() -> None:
    deadlines = {command: plans.deadline_at(command, NOW) - NOW for command in Command}
    assert deadlines.pop(Command.DESTROY) == plans.FOREVER_S
    assert all(0 < patience <= 3600 for patience in deadlines.values())
