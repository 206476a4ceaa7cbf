#!/usr/bin/env python3
"""Home Assistant itself, without its pages, against the real bridge, broker and rTorrent.

Usage: run.py PATH_OF_DTORRENT  (in a Python that has `homeassistant` and `paho-mqtt`; see run.sh)

Everything runs in a temporary folder on loopback. What is asserted is said at the end of each step; the
first thing that is wrong ends the run with code 1.
"""

import asyncio
import hashlib
import logging
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile

import yaml

from homeassistant import bootstrap, config_entries, core, loader
from homeassistant.components import mqtt
from homeassistant.const import __version__ as HA_VERSION
from homeassistant.core_config import async_process_ha_core_config
from homeassistant.helpers import device_registry as dr
from homeassistant.helpers import entity_registry as er
from homeassistant.setup import async_setup_component

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE = 60.0
# Entities that have no state before something happened, or never have one.
WITHOUT_STATE = ("button.", "notify.", "event.", "text.")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def bencode(value):
    match value:
        case int():
            return b"i%de" % value
        case bytes():
            return b"%d:%s" % (len(value), value)
        case str():
            return bencode(value.encode())
        case dict():
            return b"d%se" % b"".join(bencode(k) + bencode(v) for k, v in sorted(value.items()))
    raise TypeError(value)


def torrent(name):
    """A .torrent of one file that nobody has."""
    content = hashlib.sha256(name.encode()).digest() * 1000
    info = {"length": len(content), "name": name, "piece length": 32768, "pieces": hashlib.sha1(content).digest()}
    return bencode({"info": info}), hashlib.sha1(bencode(info)).hexdigest()


class Log(logging.Handler):
    """What Home Assistant complains about."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said = []

    def emit(self, record):
        text = f"{record.levelname} {record.name}: {record.getMessage()}"
        if record.exc_info:
            text += "\n" + logging.Formatter().formatException(record.exc_info)
        # A core without the pages and add-ons says this of itself.
        if not any(name in record.name for name in ("aiohttp_fast_zlib", "homeassistant.helpers.frame")):
            self.said.append(text)


class World:
    """Broker, client and bridge."""

    def __init__(self, folder, dtorrent):
        self.folder, self.dtorrent = folder, dtorrent
        self.port = free_port()
        self.processes = []
        self.bridge = None

    def spawn(self, name, *command):
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                                       env={**os.environ, "TERM": "dumb"})
        self.processes.append(process)
        return process

    def start_peers(self):
        config = self.folder / "mosquitto.conf"
        config.write_text(f"user root\nallow_anonymous true\nlistener {self.port} 127.0.0.1\n")
        self.spawn("mosquitto", shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin"), "-c", str(config))
        for name in ("session", "downloads"):
            (self.folder / name).mkdir()
        port, rc = free_port(), self.folder / "rtorrent.rc"
        rc.write_text(
            f'system.daemon.set = true\ndirectory.default.set = "{self.folder}/downloads"\n'
            f'session.path.set = "{self.folder}/session"\nnetwork.bind_address.set = 127.0.0.1\n'
            f"network.port_range.set = {port}-{port}\nnetwork.max_open_files.set = 64\nnetwork.http.max_open.set = 8\n"
            f"dht.mode.set = off\ndht.port.set = {port}\nprotocol.pex.set = no\ntrackers.use_udp.set = no\n"
            f'network.scgi.open_local = "{self.folder}/rpc.sock"\n'
        )
        self.spawn("rtorrent", "rtorrent", "-n", "-o", f"import={rc}")
        config = self.folder / "dtorrent.toml"
        config.write_text(
            f'data_dir = "{self.folder}/data"\n[http]\nlisten = "off"\n'
            f'[servers.home]\nurl = "unix://{self.folder}/rpc.sock"\ninterval = "250ms"\n'
            f'roots = ["{self.folder}"]\n'
            f'[brokers.b]\nkind = "mqtt"\nurl = "mqtt://127.0.0.1:{self.port}"\n'
            "[brokers.b.home_assistant]\nenabled = true\nslots = 3\n"
            'alternative_download = "100KiB"\nalternative_upload = "50kB"\ntorrents = { label = "ha" }\n'
        )
        self.config = config

    def start_bridge(self):
        self.bridge = self.spawn("dtorrent", self.dtorrent, "run", "--config", str(self.config))

    def stop_bridge(self):
        self.bridge.send_signal(signal.SIGTERM)
        assert self.bridge.wait(20) == 0, "the bridge ends well"

    def end(self):
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


async def until(what, condition):
    """Waits for a condition; the last thing it said is shown if it never holds."""
    last, deadline = None, asyncio.get_running_loop().time() + PATIENCE
    while asyncio.get_running_loop().time() < deadline:
        last = condition()
        if last is True or (last and not isinstance(last, str)):
            return last
        await asyncio.sleep(0.05)
    raise AssertionError(f"waited for {what} in vain: {last!r}")


async def start_home_assistant(folder, port, config):
    folder.mkdir(exist_ok=True)
    (folder / "configuration.yaml").touch()
    shutil.copytree(ROOT / "deploy/home-assistant/blueprints", folder / "blueprints/automation/dtorrent",
                    dirs_exist_ok=True)
    hass = core.HomeAssistant(str(folder))
    loader.async_setup(hass)
    hass.config.skip_pip = True
    hass.config_entries = config_entries.ConfigEntries(hass, config)
    await loader.async_get_custom_components(hass)
    await bootstrap.async_load_base_functionality(hass)
    await async_process_ha_core_config(hass, {})
    config = {"http": {"server_host": "127.0.0.1", "server_port": free_port()}, **config}
    for domain in ("homeassistant", "persistent_notification", "http", "event"):
        assert await async_setup_component(hass, domain, config), domain
    if not hass.config_entries.async_entries("mqtt"):
        entry = config_entries.ConfigEntry(
            version=1, minor_version=2, domain="mqtt", title="mqtt", data={"broker": "127.0.0.1", "port": port},
            source="user", options={}, unique_id=None, discovery_keys={}, subentries_data=None,
        )
        await hass.config_entries.async_add(entry)
    else:
        assert await async_setup_component(hass, "mqtt", config)
    for domain in ("script", "automation"):
        assert await async_setup_component(hass, domain, config), domain
    await hass.async_start()
    return hass


async def hear_oneself(hass):
    """Waits until all that Home Assistant has said to the broker has come back to it."""
    await hass.async_block_till_done()
    heard = asyncio.Event()
    unsubscribe = await mqtt.async_subscribe(hass, "marker", core.callback(lambda _message: heard.set()))
    # A subscription goes out a moment after it is made.
    async with asyncio.timeout(PATIENCE):
        while not heard.is_set():
            await mqtt.async_publish(hass, "marker", "x")
            await asyncio.sleep(0.5)
    unsubscribe()
    await hass.async_block_till_done()


def entities(hass):
    registry = er.async_get(hass)
    return [entry for entry in registry.entities.values() if entry.platform == "mqtt"]


def bad_states(hass, allowed_unknown=()):
    bad = []
    for entry in entities(hass):
        if entry.disabled_by:
            continue
        state = hass.states.get(entry.entity_id)
        if state is None or state.state == "unavailable":
            bad.append(f"{entry.entity_id} is {state and state.state}")
        elif state.state == "unknown" and not entry.entity_id.startswith(WITHOUT_STATE):
            if not re.search("|".join(allowed_unknown) or "$^", entry.entity_id):
                bad.append(f"{entry.entity_id} is unknown")
    return bad


def devices(hass):
    return {d.name: d for d in dr.async_get(hass).devices.values() if d.manufacturer == "dTorrent"}


AUTOMATIONS = [
    {
        "id": "seen", "alias": "seen", "mode": "queued", "max": 100,
        "triggers": [{"trigger": "mqtt", "topic": "dtorrent/home/homeassistant/event",
                      "value_template": "{{ value_json.event_type }}", "payload": "added"}],
        "actions": [{"event": "seen_by_mqtt", "event_data": {"name": "{{ trigger.payload_json.name }}"}}],
    },
    {
        "id": "entity", "alias": "entity", "mode": "queued", "max": 100,
        "triggers": [{"trigger": "state", "entity_id": "event.dtorrent_home_event", "not_from": "unavailable"}],
        "actions": [{"event": "seen_by_entity",
                     "event_data": {"kind": "{{ trigger.to_state.attributes.get('event_type') }}",
                                    "name": "{{ trigger.to_state.attributes.get('name') }}"}}],
    },
]


BLUEPRINTS = [
    ("notify_on_finish", {"label": "linux", "action": [{"event": "finished_by_blueprint"}]}),
    ("pause_while_streaming", {"players": ["media_player.tv"], "pause_button": "button.dtorrent_home_pause_all",
                               "resume_button": "button.dtorrent_home_resume_all", "minutes": 1}),
    ("alternative_speed_at_night", {"speed": "switch.dtorrent_home_alternative_speed"}),
]


async def main(dtorrent):
    folder = pathlib.Path(tempfile.mkdtemp(prefix="dt-ha-"))
    world = World(folder, dtorrent)
    log = Log()
    logging.getLogger().addHandler(log)
    hass = None
    try:
        world.start_peers()
        world.start_bridge()
        documents = yaml_of_the_docs()
        scripts = {name: body for part in documents for name, body in part.get("script", {}).items()}
        blueprints = [
            {"id": name, "alias": name, "use_blueprint": {"path": f"dtorrent/{name}.yaml", "input": given}}
            for name, given in BLUEPRINTS
        ]
        of_the_page = [automation for part in documents for automation in part.get("automation", [])]
        config = {"automation": AUTOMATIONS + blueprints + of_the_page, "script": scripts}
        hass = await start_home_assistant(folder / "ha", world.port, config)
        seen = []
        for name in ("seen_by_mqtt", "seen_by_entity"):
            hass.bus.async_listen(name, lambda event: seen.append((event.event_type, dict(event.data))))

        await until("both devices", lambda: {"dTorrent main", "dTorrent home"} <= devices(hass).keys())
        quiet = ("last_result", "last_finished", "slot_", "ratio", "free_space", "time_left")
        await until("no entity without a state", lambda: bad_states(hass, quiet) == [] or "; ".join(bad_states(hass, quiet)))
        home = devices(hass)["dTorrent home"]
        assert home.via_device_id == devices(hass)["dTorrent main"].id
        count = len(entities(hass))
        print(f"ok: Home Assistant {HA_VERSION} shows {count} entities, all available")

        for name, _ in BLUEPRINTS:
            assert is_state(hass, f"automation.{name}", "on") is True, name
        hass.states.async_set("media_player.tv", "idle")
        print("ok: blueprints make automations")

        triggers = await device_triggers(hass, home.id)
        assert {"added", "finished", "removed", "error"} <= triggers, triggers
        print("ok: device triggers are listed")

        body, one = torrent("one")
        add(world, body)
        await until("the event", lambda: any(data.get("name") == "one" for _, data in seen))
        await until("the event entity", lambda: ("seen_by_entity", {"kind": "added", "name": "one"}) in seen)
        state = await until("the torrent in a slot", lambda: named(hass, "sensor.dtorrent_home_slot_1", "one"))
        assert state.attributes["hash"] == one
        print("ok: an event fires automations, and the torrent is in a slot")

        async def calls(domain, service, entity_id, **data):
            await hass.services.async_call(domain, service, {"entity_id": entity_id, **data}, blocking=True)

        run = "switch.dtorrent_home_slot_1_running"
        await until("the torrent runs", lambda: is_state(hass, run, "on"))
        await calls("switch", "turn_off", run)
        await until("the slot's switch pauses it", lambda: is_state(hass, run, "off"))
        await until("the client agrees", lambda: rpc(world, "d.is_active", one) == "0")
        await calls("button", "press", "button.dtorrent_home_resume_all")
        await until("the button resumes it", lambda: is_state(hass, run, "on"))
        hass.states.async_set("media_player.tv", "playing")
        await until("the blueprint pauses while streaming", lambda: is_state(hass, run, "off"))
        await calls("button", "press", "button.dtorrent_home_resume_all")
        await until("the button resumes it again", lambda: is_state(hass, run, "on"))
        await calls("button", "press", "button.dtorrent_home_pause_all")
        await until("the button pauses a real torrent", lambda: rpc(world, "d.is_active", one) == "0")
        await until("the answer is shown", lambda: is_state(hass, "sensor.dtorrent_home_last_result", "ok"))
        print("ok: switch and buttons pause and resume a real torrent")

        await calls("switch", "turn_off", "switch.dtorrent_home_torrents")
        await until("all are stopped", lambda: is_state(hass, "sensor.dtorrent_home_stopped_torrents", "1"))
        await calls("switch", "turn_on", "switch.dtorrent_home_torrents")
        await until("all are started", lambda: is_state(hass, "sensor.dtorrent_home_started_torrents", "1"))
        magnet = "magnet:?xt=urn:btih:" + "ab" * 20
        await calls("notify", "send_message", "notify.dtorrent_home_add", message=magnet)
        await until("the link is added", lambda: is_state(hass, "sensor.dtorrent_home_torrents", "2"))
        await calls("text", "set_value", "text.dtorrent_home_add_a_link", value="magnet:?xt=urn:btih:" + "cd" * 20)
        await until("the other link is added", lambda: is_state(hass, "sensor.dtorrent_home_torrents", "3"))
        print("ok: start and stop all, notify and text add links")

        await calls("number", "set_value", "number.dtorrent_home_download_limit", value=300)
        await until("the limit", lambda: is_state(hass, "number.dtorrent_home_download_limit", "300"))
        await calls("switch", "turn_on", "switch.dtorrent_home_alternative_speed")
        await until("the other limit", lambda: is_state(hass, "number.dtorrent_home_download_limit", "100"))
        await calls("switch", "turn_off", "switch.dtorrent_home_alternative_speed")
        await until("no limit", lambda: is_state(hass, "number.dtorrent_home_download_limit", "0"))
        assert rpc(world, "throttle.global_down.max_rate", "") == "0"
        await calls("button", "press", "button.dtorrent_home_resync")
        await until("it is answered", lambda: is_state(hass, "sensor.dtorrent_home_last_result", "ok"))
        print("ok: limits, alternative speed and resync")

        if scripts:
            answer = await hass.services.async_call(
                "script", "dtorrent_get_torrents", {"status": "paused"}, blocking=True, return_response=True)
            assert answer["status"] == "ok" and answer["results"] == [], answer
            answer = await hass.services.async_call(
                "script", "dtorrent_get_torrents", {}, blocking=True, return_response=True)
            assert len(answer["results"]) == 3, answer
            await hass.services.async_call("script", "dtorrent_remove_torrent", {"hash": "ab" * 20}, blocking=True)
            await until("it is removed", lambda: is_state(hass, "sensor.dtorrent_home_torrents", "2"))
            more = {"url": "magnet:?xt=urn:btih:" + "ef" * 20, "label": "linux"}
            await hass.services.async_call("script", "dtorrent_add_torrent", more, blocking=True)
            await until("it is added", lambda: is_state(hass, "sensor.dtorrent_home_torrents", "3"))
            assert rpc(world, "d.custom1", "EF" * 20) == "linux"
            await hass.services.async_call("script", "dtorrent_stop_torrent", {"hash": "ef" * 20}, blocking=True)
            await until("it is stopped", lambda: is_state(hass, "sensor.dtorrent_home_stopped_torrents", "1"))
            await hass.services.async_call("script", "dtorrent_start_torrent", {"hash": "ef" * 20}, blocking=True)
            await until("it is started", lambda: is_state(hass, "sensor.dtorrent_home_stopped_torrents", "0"))
            print("ok: the scripts of the page ask and are answered")

        rpc(world, "d.custom1.set", one, "ha")
        await until("the device of a torrent", lambda: "one" in devices(hass))
        await until("its entities", lambda: is_state(hass, "sensor.one_status", "downloading"))
        print("ok: a torrent with the label has a device")

        # A restart of Home Assistant.
        # Its connection does not end with it, as it would with its process.
        for entry in hass.config_entries.async_entries("mqtt"):
            await hass.config_entries.async_unload(entry.entry_id)
        await hass.async_stop(force=True)
        hass = await start_home_assistant(folder / "ha", world.port, config)
        await until("all are back", lambda: bad_states(hass, quiet) == [] or "; ".join(bad_states(hass, quiet)))
        print("ok: after a restart all entities are back")

        complaints = list(log.said)
        world.stop_bridge()
        await until("the connection is off", lambda: is_state(hass, "binary_sensor.dtorrent_main_status", "off"))
        assert is_state(hass, "sensor.dtorrent_home_download_speed", "unavailable") is True
        purge = subprocess.run([dtorrent, "purge", "--config", world.config], capture_output=True, text=True)
        assert purge.returncode == 0, purge.stderr
        await until("the devices are gone", lambda: devices(hass) == {} or str(devices(hass).keys()))
        assert entities(hass) == []
        await hear_oneself(hass)
        print("ok: after purge no device and no entity is left")
        complaints += log.said[len(complaints):]
        assert complaints == [], "Home Assistant complains:\n" + "\n".join(complaints)
        print("ok: no warning in the log of Home Assistant")
    except BaseException:
        bridge = (folder / "dtorrent.log")
        print("--- the bridge said:", bridge.read_text()[-4000:] if bridge.exists() else "nothing", sep="\n")
        print("--- Home Assistant complains:", *log.said[-40:], sep="\n")
        raise
    finally:
        if hass:
            await hass.async_stop(force=True)
        world.end()
        shutil.rmtree(folder, ignore_errors=True)


def named(hass, entity_id, name):
    state = hass.states.get(entity_id)
    return state if state and state.state == name else str(state)


def is_state(hass, entity_id, wanted):
    state = hass.states.get(entity_id)
    return True if state and state.state == wanted else str(state)


async def device_triggers(hass, device_id):
    from homeassistant.components.mqtt.device_trigger import async_get_triggers

    return {trigger["type"] for trigger in await async_get_triggers(hass, device_id)}


def yaml_of_the_docs():
    """The YAML blocks of docs/home-assistant.md that are parts of a configuration."""
    page = ROOT / "docs" / "home-assistant.md"
    blocks = re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S) if page.exists() else []

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, suffix, node: f"!{suffix}")
    return [part for part in (yaml.load(block, Loader) for block in blocks) if isinstance(part, dict)]


def scgi(world, body):
    head = f"CONTENT_LENGTH\0{len(body)}\0SCGI\x001\0".encode()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(world.folder / "rpc.sock"))
        connection.sendall(b"%d:%s,%s" % (len(head), head, body))
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer.decode()


def rpc(world, method, *arguments):
    import xmlrpc.client

    answer = scgi(world, xmlrpc.client.dumps(arguments, method).encode())
    (value,), _ = xmlrpc.client.loads(re.sub(r"(?s)^.*?(?=<\?xml)", "", answer).replace("i8>", "i4>"))
    return str(value)


def add(world, body):
    import xmlrpc.client

    rpc(world, "load.raw_start", "", xmlrpc.client.Binary(body))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
