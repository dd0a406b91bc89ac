"""One example per route, as the very structs that the wire uses: an example that stops being valid stops compiling."""

from typing import Any, Final

import msgspec
from spawn_schemas import api, boots, catalog, events, hosts, inside, inventory, suspense, webhooks
from spawn_schemas.ids import HostId

from spawn.api.event_examples import example

_WALLET: Final = "0x8ba1f109551bd432803012645ac136ddd64dba72"
_SERVER_ID: Final = "srv_mfzwizltoq4dgnbvgy3tqojqme"
_ACTION_ID: Final = "act_nbswy3dpfqqho33snrscc4tfmq"
_KEY_ID: Final = "sk_onuw24dmmuqhg5dsnfxgoidjom"
_NOW: Final = "2026-02-24T10:00:00Z"

_HOST_KEY: Final = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAchARWiGSmJxo7QdZhdXUQoDxmASZCJBxzFUVjjOmsO"
_SUMMARY: Final = api.ServerSummary(
    id=_SERVER_ID,
    hetzner_id=12345678,
    name="my-agent-node",
    type="small",
    status="running",
    image="ubuntu-24.04",
    location="nbg1",
    public_net=api.PublicNet(ipv4="203.0.113.7", ipv6="2001:db8::1"),
    created_at=_NOW,
    owner_wallet=_WALLET,
)
_VIEW: Final = api.ServerView(
    id=_SERVER_ID,
    hetzner_id=12345678,
    name="my-agent-node",
    type="small",
    status="running",
    image="ubuntu-24.04",
    location="nbg1",
    public_net=api.PublicNet(ipv4="203.0.113.7", ipv6="2001:db8::1"),
    created_at=_NOW,
    owner_wallet=_WALLET,
    cores=2,
    memory_gb=4,
    disk_gb=40,
    network="dual",
    ssh_keys=(_KEY_ID,),
    auto_renew=True,
    daily_burn="0.15",
    deposit_remaining="4.85",
    deposit_expires_at="2026-03-28T18:00:00Z",
    traffic=api.TrafficView(
        ingoing_bytes=48_318_382_080,
        outgoing_bytes=12_884_901_888,
        included_bytes=21_990_232_555_520,
        overage_usdc_per_tb="1.20",
        charged="0.00",
    ),
    reason=None,
    action=None,
    root_password=None,
    ssh_host_keys=(_HOST_KEY,),
    known_hosts=f"203.0.113.7,2001:db8::1 {_HOST_KEY}",
    ready=api.ReadyView(
        ssh="2026-02-24T10:00:58Z",
        cloud_init="done",
        reported_at="2026-02-24T10:01:14Z",
        log="Cloud-init v. 24.4 finished.",
    ),
)
_KEY: Final = api.SshKeyView(
    id=_KEY_ID,
    name="my-laptop",
    fingerprint="SHA256:uNiVztksCsDhcc0u9e8BrrJXVGDvpk/sYQ5KJk1Q7nE",
    created_at=_NOW,
    owner_wallet=_WALLET,
)
_WEBHOOK_ID: Final = "wh_nrxw4zzanruw43dfou2gk3tdmu"
_SECRET: Final = "whsec_C2FVsBQI..."  # noqa: S105 - an example's, and not whole
_WEBHOOK: Final = webhooks.WebhookView(
    id=_WEBHOOK_ID,
    url="https://agent.example.com/hooks/spawn",
    types=("server.*", "deposit.low"),
    description="my agent",
    enabled=True,
    disabled_reason=None,
    failing_since=None,
    created_at=_NOW,
    owner_wallet=_WALLET,
)
_HOST_ID: Final = HostId("host_orsxg5bamjqxg5lumvzs4")
_PUBLIC_KEY: Final = "ByEBFaIZKYnGjtB1mF1dRCgPGYBJkIEHHMVRWOM6Yw4="
_PROOF: Final = "A" * 86 + "=="
_INVENTORY: Final = inventory.Inventory(
    hostname="attic",
    os="Debian GNU/Linux 12",
    kernel="6.1.0",
    architecture="x86",
    cpu_model="AMD Ryzen 9 7950X",
    cpu_cores=16,
    cpu_threads=32,
    total_memory_mib=64_000,
    total_disk_mib=1_900_000,
    cpus=12.0,
    memory_mib=48_000,
    disk_mib=1_000_000,
)
_DELIVERY: Final = webhooks.DeliveryView(
    event="evt_1042",
    type="server.running",
    resource=_SERVER_ID,
    state="pending",
    attempts=1,
    status_code=503,
    error="answered 503",
    created_at=_NOW,
    attempted_at=_NOW,
    next_at="2026-02-24T10:00:05Z",
    finished_at=None,
)


def _started(command: str) -> api.ActionSummary:
    return api.ActionSummary(id=_ACTION_ID, status="running", command=command, started=_NOW)


REQUESTS: Final[dict[str, Any]] = {
    "POST /v1/servers": api.CreateServer(
        name="my-agent-node",
        type="small",
        image="ubuntu-24.04",
        location="nbg1",
        ssh_keys=(_KEY_ID,),
        user_data="#!/bin/bash\napt-get update",
        deposit="0.50",
        fund="0.60",
    ),
    "PATCH /v1/servers/{server_id}": api.UpdateServer(name="renamed", auto_renew=False),
    "POST /v1/servers/{server_id}/deposit": api.FundServer(amount="5.00"),
    "POST /v1/servers/{server_id}/resize": api.ResizeServer(type="medium"),
    "POST /v1/servers/{server_id}/rebuild": api.RebuildServer(image="debian-12"),
    "POST /v1/servers/{server_id}/exec": inside.RunCommand(argv=("uname", "-s"), timeout_s=10),
    "POST /v1/ssh-keys": api.RegisterSshKey(
        name="my-laptop",
        public_key="ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMuuTlGtNlKnGGHu0lF0O1ULQdgG3CYVQbh3OVfpEYOT",
    ),
    "POST /v1/balance/deposit": api.Deposit(amount="5.00"),
    "POST /v1/webhooks": webhooks.CreateWebhook(
        url="https://agent.example.com/hooks/spawn", types=("server.*", "deposit.low"), description="my agent"
    ),
    "PATCH /v1/webhooks/{webhook_id}": webhooks.UpdateWebhook(enabled=True),
    "POST /v1/hosts/register": hosts.RegisterHost(
        token="spwn_reg_2c624232cdd221771294dfbb310aca00...",  # noqa: S106 - an example's, and not whole
        public_key=_PUBLIC_KEY,
        proof=_PROOF,
        inventory=_INVENTORY,
        agent_version="0.1.0",
    ),
    "POST /v1/hosts/key": hosts.ChangeKey(public_key=_PUBLIC_KEY, proof=_PROOF),
    "POST /api/hosts/heartbeat": hosts.Beat(metrics=inventory.Metrics(cpu_percent=45.2, memory_percent=62.1)),
    "POST /v1/boots/{token}": boots.BootReport(cloud_init="done", log="Cloud-init v. 24.4 finished."),
}

_RAN: Final = inside.RanView(
    id="cmd_nbswy3dpfqqho33snrscc4tfmq",
    server_id=_SERVER_ID,
    status="ended",
    exit_code=0,
    stdout="Linux\n",
    stderr="",
    error=None,
)

RESPONSES: Final[dict[str, Any]] = {
    "POST /v1/servers": api.ServerCreated(
        server=_SUMMARY,
        action=_started("create_server"),
        deposit_charged="0.50",
        deposit_remaining="0.10",
        root_password=None,
    ),
    "GET /v1/servers": api.ServerList(servers=(_SUMMARY,), meta=api.PageMeta(page=1, per_page=25, total=1)),
    "GET /v1/servers/{server_id}": api.ServerShown(server=_VIEW),
    "PATCH /v1/servers/{server_id}": api.ServerShown(server=_VIEW),
    "DELETE /v1/servers/{server_id}": api.ServerDestroyed(
        status="deleted", deposit_refunded="4.85", action=_started("destroy_server")
    ),
    "POST /v1/servers/{server_id}/deposit": api.ServerFunded(server=_VIEW, available="1.25"),
    "POST /v1/servers/{server_id}/start": api.ActionStarted(action=_started("start_server")),
    "POST /v1/servers/{server_id}/stop": api.ActionStarted(action=_started("stop_server")),
    "POST /v1/servers/{server_id}/poweroff": api.ActionStarted(action=_started("poweroff_server")),
    "POST /v1/servers/{server_id}/reboot": api.ActionStarted(action=_started("reboot_server")),
    "POST /v1/servers/{server_id}/resize": api.ServerResized(
        action=_started("resize_server"), new_type="medium", deposit_delta="-1.50"
    ),
    "POST /v1/servers/{server_id}/rebuild": api.ServerRebuilt(
        action=_started("rebuild_server"), root_password=None
    ),
    "GET /v1/servers/{server_id}/logs": inside.LogsShown(
        logs=inside.LogsView(server_id=_SERVER_ID, text="Server listening on 0.0.0.0 port 22.\n", error=None)
    ),
    "POST /v1/servers/{server_id}/exec": inside.CommandRan(ran=_RAN),
    "GET /v1/commands/{command_id}": inside.CommandRan(ran=_RAN),
    "POST /v1/ssh-keys": api.SshKeyShown(ssh_key=_KEY),
    "GET /v1/ssh-keys": api.SshKeyList(ssh_keys=(_KEY,)),
    "DELETE /v1/ssh-keys/{key_id}": api.Deleted(status="deleted"),
    "GET /v1/balance": api.BalanceView(balance="20.00", reserved="10.25", available="9.75"),
    "GET /v1/balance/transactions": api.TransactionList(
        transactions=(
            api.TransactionView(
                id="txn_42", kind="fee", amount="-0.01", internal=False, reference=_ACTION_ID, at=_NOW
            ),
        ),
        next_cursor=None,
    ),
    "POST /v1/balance/deposit": api.Deposited(
        deposited="5.00", balance="20.00", reserved="10.25", available="9.75"
    ),
    "GET /v1/suspense": suspense.SuspenseView(
        arrivals=(
            suspense.ArrivalView(
                transaction="0x88df016429689c079f3b2f6ad39fa052532c56795b733da78a91ebe6a713944b",
                amount="5.00",
                at=_NOW,
            ),
        ),
        total="5.00",
    ),
    "POST /v1/suspense/claim": suspense.SuspenseClaimed(
        claimed="5.00", left="0.00", balance="25.00", reserved="10.25", available="14.75"
    ),
    "POST /v1/webhooks": webhooks.WebhookCreated(webhook=_WEBHOOK, secret=_SECRET),
    "GET /v1/webhooks": webhooks.WebhookList(webhooks=(_WEBHOOK,)),
    "GET /v1/webhooks/{webhook_id}": webhooks.WebhookShown(webhook=_WEBHOOK),
    "PATCH /v1/webhooks/{webhook_id}": webhooks.WebhookShown(webhook=_WEBHOOK),
    "DELETE /v1/webhooks/{webhook_id}": api.Deleted(status="deleted"),
    "POST /v1/webhooks/{webhook_id}/test": webhooks.WebhookTested(event="evt_1043"),
    "POST /v1/webhooks/{webhook_id}/secret": webhooks.SecretRotated(
        webhook=_WEBHOOK, secret=_SECRET, previous_until="2026-02-25T10:00:00Z"
    ),
    "GET /v1/webhooks/{webhook_id}/deliveries": webhooks.DeliveryList(
        deliveries=(_DELIVERY,), next_cursor="c1042"
    ),
    "GET /v1/events": events.EventList(
        events=(example(events.EventType.DEPOSIT_LOW),), next_cursor="evt_42", has_more=False, gap=False
    ),
    "POST /v1/sessions": api.SessionOpened(
        session=api.SessionView(
            token="spawn_session_i6Hx...",  # noqa: S106 - an example's, and not whole
            wallet=_WALLET,
            expires_at="2026-02-24T10:15:00Z",
            expires_in=900,
        )
    ),
    "POST /v1/hosts/register": hosts.HostRegistered(
        host_id=_HOST_ID,
        name="attic-4090",
        link_url="wss://link.spawn.example/v1/hosts/link",
        heartbeat_interval_s=30,
    ),
    "POST /v1/hosts/key": hosts.KeyChanged(status="changed"),
    "POST /api/hosts/heartbeat": hosts.BeatAnswered(
        ok=True, commands=(), desired=(), desired_generation=7, next_s=60
    ),
    "POST /v1/boots/{token}": boots.BootReported(status="recorded"),
    "GET /v1/actions/{action_id}": api.ActionShown(
        action=api.ActionView(
            id=_ACTION_ID,
            status="success",
            command="create_server",
            started=_NOW,
            finished="2026-02-24T10:00:45Z",
            error=None,
            server_id=_SERVER_ID,
        )
    ),
    "GET /v1/catalog": catalog.CatalogView(
        offers=(
            catalog.OfferView(
                type="small",
                location="nbg1",
                provider_type="cx23",
                architecture="x86",
                cores=2,
                memory_gb=4,
                disk_gb=40,
                daily_burn="0.15",
                monthly_burn_max="4.50",
                deposit="5.00",
                minimum_deposit="0.15",
                included_traffic_bytes=21_990_232_555_520,
                overage_usdc_per_tb="1.20",
            ),
        ),
        images=(catalog.ImageView(name="ubuntu-24.04", description="Ubuntu 24.04 LTS"),),
        locations=(catalog.LocationView(name="nbg1", city="Nuremberg", country="DE"),),
        fees=(catalog.FeeView(method="POST", path="/v1/servers", fee="0.01", summary="Rent a server"),),
        payment=catalog.PaymentTerms(
            scheme="exact",
            network="eip155:84532",
            asset="0x036CbD53842c5426634e7929541eC2318f3dCF7e",
            pay_to="0x5ba7DD0000000000000000000000000000008402",
            minimum="0.001",
        ),
    ),
    "GET /health": api.Health(status="ok", version="0.1.0", schema="0001", providers=("simulated",)),
}


def answered(route: str) -> Any:
    """The route's example answer as a client reads it."""
    return msgspec.json.decode(msgspec.json.encode(RESPONSES[route]))
