"""The configuration: every option, every complaint, and the shipped banwatch.conf."""
import os

import pytest

import banwatch
from harness import config

ROOT = os.path.dirname(os.path.abspath(banwatch.__file__))


def problems(text):
    made, found = banwatch.read_config(text, 'c')
    return banwatch.in_order(found + banwatch.Jails(made).problems)


# --- values

@pytest.mark.parametrize('text, seconds', [
    ('600', 600), ('10m', 600), ('2h30m', 9000), ('2h 30m', 9000), ('7d', 604800), ('4w', 2419200), ('1.5h', 5400),
    ('1mo', 2629800), ('1y', 31557600), ('0', 0), ('10M', 600)])
def test_durations_are_read(text, seconds):
    assert banwatch.duration(text) == seconds


@pytest.mark.parametrize('text', ['', '1x', 'm', '10m5', '5 5', '-5', '1e9', '10 m x', '200y', '1m;rm', '__import__("os")'])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(ValueError, match='is not a duration'):
        banwatch.duration(text)


@pytest.mark.parametrize('seconds, text', [(0, '0s'), (59, '59s'), (600, '10m'), (9000, '2h30m'), (86401, '1d'), (-1, 'for ever'),
                                           (2419200, '4w'), (90061, '1d1h'), (604800 + 60, '1w')])
def test_durations_are_written(seconds, text):
    assert banwatch.duration_text(seconds) == text


@pytest.mark.parametrize('text, ip', [('192.0.2.7', '192.0.2.7'), ('::ffff:192.0.2.7', '192.0.2.7'), ('FE80::1%eth0', 'fe80::1'),
                                      ('[2001:DB8:0:0::7]', '2001:db8::7')])
def test_addresses_get_one_form(text, ip):
    assert banwatch.address(text) == ip


@pytest.mark.parametrize('text', ['999.1.2.3', '1.2.3', '1.2.3.4.5', '', 'host', '1.2.3.4;', '::g', '1.2.3.4 ', '-j'])
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ValueError):
        banwatch.address(text)


@pytest.mark.parametrize('text', ['2001:db8::%x/64', '2001:db8::%x y/64', '192.0.2.0/33', '/24', '192.0.2.0/x'])
def test_what_is_no_network_is_refused(text):
    with pytest.raises(ValueError):
        banwatch.network_of(text)


def test_networks_are_written_without_host_bits_and_single_ones_without_prefix():
    assert banwatch.network_of('198.51.100.77/24') == '198.51.100.0/24'
    assert banwatch.network_of('198.51.100.77/32') == '198.51.100.77'
    assert banwatch.network_of('2001:db8::77', 32, 64) == '2001:db8::/64'
    assert banwatch.network_of('2001:db8::77/128') == '2001:db8::77'


def test_text_for_a_terminal_has_no_control_characters():
    assert banwatch.printable('a\x1b[31m\r\n\u202eb\xe9\x00') == 'a\\x1b[31m\\r\\n\\u202eb\xe9\\x00'


# --- the file

def test_without_a_file_the_three_jails_are_on():
    assert banwatch.Config().jails() == ['dropbear', 'sshd', 'luci']


def test_a_jail_can_be_switched_off_and_others_added():
    made = config('[luci]\nenabled = no\n[office]\nfilter = sshd\nmaxretry = 3\n')
    assert made.jails() == ['dropbear', 'sshd', 'office']
    assert made.get('office', 'maxretry') == 3 and made.get('sshd', 'maxretry') == 5


def test_a_jail_takes_what_it_does_not_say_from_default():
    made = config('[DEFAULT]\nmaxretry = 7\n[sshd]\nfindtime = 1h\n')
    assert made.get('sshd', 'maxretry') == 7 and made.get('sshd', 'findtime') == 3600


def test_comments_continuations_and_both_separators():
    made = config('# one\n; two\n[sshd]\n  # inside\nmaxretry: 3 ; after\nfailregex = ^a <HOST>\n    ^b # <HOST>\n\n    ^c <HOST>\n'
                  '[luci]\nenabled=false\n')
    assert made.get('sshd', 'maxretry') == 3
    assert made.get('sshd', 'failregex') == ['^a <HOST>', '^b # <HOST>', '^c <HOST>']


def test_option_names_are_not_case_sensitive_and_logpath_is_source():
    assert config('[sshd]\nLogPath = /var/log/x\n').get('sshd', 'source') == ['/var/log/x']


SOURCES = (': no log source (one a line: auto, logread, journalctl, /var/log/messages, fifo:/PATH, udp:127.0.0.1:5514, trap:telnet:23, '
           'exec:/PROGRAM ARGS, -)')


@pytest.mark.parametrize('text, complaint', [
    ('maxretry = 3', "c:1: 'maxretry = 3' stands before any [section]"),
    ('[sshd]\nfoo', "c:2: 'foo' is neither a [section] nor `option = value`"),
    ('[banwatch]\nmaxretry = 3', 'c:2: maxretry: no such option in [banwatch] (it belongs into [DEFAULT])'),
    ('[sshd]\nmaxretri = 3', 'c:2: maxretri: no such option in [sshd] (did you mean maxretry?)'),
    ('[sshd]\nmaxretry = 3\nmaxretry = 4', 'c:3: maxretry: stands in [sshd] twice'),
    ('[sshd]\nmaxretry = 3\n[sshd]', 'c:3: [sshd] stands here twice'),
    ('[sshx]\nenabled = true', "c:1: [sshx]: no filter is called 'sshx' (did you mean sshd?)"),
    ('[a b]', "c:1: [a b]: a jail's name is up to 30 letters, digits, dots and dashes"),
    ('[sshd]\nbantime = 1x', "c:2: bantime: '1x' is not a duration (try 600, 10m, 2h30m, 7d)"),
    ('[sshd]\nbantime = 0', "c:2: bantime: '0' is too short (1s at least)"),
    ('[sshd]\nfindtime = -1', "c:2: findtime: '-1' is not a duration (try 600, 10m, 2h30m, 7d)"),
    ('[sshd]\nmaxretry = 0', "c:2: maxretry: '0' is not a number from 1 to 1000000"),
    ('[sshd]\nenabled = maybe', "c:2: enabled: 'maybe' is neither true nor false"),
    ('[sshd]\nbantime.factor = x', "c:2: bantime.factor: 'x' is not a number (try 1, 2.5)"),
    ('[sshd]\nbantime.multipliers = 1 x', "c:2: bantime.multipliers: '1 x' is not a number (try 1, 2.5)"),
    ('[shop]\nenabled = true', "c:1: [shop]: no filter is called 'shop' (there are: adguardhome asterisk dovecot dropbear exim home-assistant kernel-scan lighttpd-auth luci mikrotik nextcloud nginx-http-auth openvpn pam-generic postfix proftpd proxmox pure-ftpd recidive sshd trap vaultwarden vsftpd)"),
    ('[banwach]\nenabled = true', "c:1: [banwach]: no filter is called 'banwach' (did you mean banwatch?)"),
    ('[sshd]\n  [luci]', "c:2: '[luci]' must begin in the first column"),
    ('[sshd]\nmaxretry = 2  # two', "c:2: maxretry: '2  # two' is not a number from 1 to 1000000 (a comment after a value starts with ` ;`)"),
    ('[sshd]\nignoreip = 10.0.0.1 my.host 300.1.1.1', "c:2: ignoreip: '300.1.1.1': not an address, network, host name or file:/PATH"),
    ('[sshd]\nport = 22,foo', "c:2: port: 'foo': no port (try 22, ssh, 8000:8080)"),
    ('[sshd]\nport = 22,htttp,0', "c:2: port: 'htttp 0': no port (try 22, ssh, 8000:8080)"),
    ('[sshd]\nport = 70000', "c:2: port: '70000': no port (try 22, ssh, 8000:8080)"),
    ('[sshd]\nport = 9:8', "c:2: port: '9:8': no port (try 22, ssh, 8000:8080)"),
    ('[sshd]\nport = 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16',
     "c:2: port: '1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16' names over 15 ports (each is a rule of its own)"),
    ('[sshd]\nprotocol = icmp', "c:2: protocol: 'icmp' is not a choice of: tcp udp"),
    ('[sshd]\nipv4prefix = 4', "c:2: ipv4prefix: '4' is not a prefix length from 8 to 32"),
    ('[sshd]\nipv6prefix = 129', "c:2: ipv6prefix: '129' is not a prefix length from 32 to 128"),
    ('[banwatch]\nfirewall = pf', "c:2: firewall: 'pf' is not one of: auto ipset nft iptables command none"),
    ('[banwatch]\nchain = OUTPUT', "c:2: chain: 'OUTPUT' is not a choice of: INPUT FORWARD"),
    ('[banwatch]\nstate = relative', "c:2: state: 'relative' is not an absolute path"),
    ('[banwatch]\nsource = foo', "c:2: source: 'foo'" + SOURCES),
    ('[banwatch]\nsource = udp:99999', "c:2: source: 'udp:99999'" + SOURCES),
    ('[banwatch]\nsource = exec:/bin/x "y', "c:2: source: 'exec:/bin/x \"y'" + SOURCES),
    ('[banwatch]\nsource = /a, /b\n    /c /d\n    /e', "c:2: source: '/a, /b | /c /d'" + SOURCES),
    ('[banwatch]\nmaxbans = many', "c:2: maxbans: 'many' is not a number from 1 to 1000000"),
    ('[sshd]\nfailregex = ^x (<HOST>', "c:1: [sshd]: '^x (<HOST>' is not a regex: "),
    ('[sshd]\nfailregex = ^x$', "c:1: [sshd]: '^x$' has no <HOST>"),
    ('[sshd]\nfailregex = ^x <HOST> <ADDR>', "c:1: [sshd]: '^x <HOST> <ADDR>' has more than one <HOST>"),
    ('[sshd]\nfailregex = ^<HOSTNAME> <HOST>', "c:1: [sshd]: '^<HOSTNAME> <HOST>' has a tag that is not known: <HOSTNAME>"),
    ('[sshd]\nfailregex = ^%(__prefix_line)sx <HOST>', "c:1: [sshd]: '^%(__prefix_line)sx <HOST>' has %(...)s, which only a file of filter.d may have"),
    ('[sshd]\nx\x1b[31m = 1', 'c:2: x\\x1b[31m: no such option in [sshd]'),
])
def test_a_mistake_is_told_with_its_line(text, complaint):
    found = problems(text)
    assert len(found) == 1 and (found[0] == complaint or complaint.endswith(': ') and found[0].startswith(complaint)), found


def test_all_mistakes_are_told_in_one_go_in_the_order_of_their_lines():
    found = problems('[banwatch]\nfoo = 1\n[sshx]\nbantime = 1x\n[sshd]\nmaxretry = 0\nfindtime = x\n')
    assert [text.split(': ')[0] for text in found] == ['c:2', 'c:3', 'c:4', 'c:6', 'c:7']


# --- the options table

def test_every_default_is_readable_and_every_row_has_help():
    for row in banwatch.OPTIONS:
        row.read(row.default)
        assert row.help and row.section in ('banwatch', 'crowdsec', 'report', 'DEFAULT', 'action', 'proxy', 'rule')


def test_option_names_are_unique_but_for_those_of_rules_and_source():
    names = [row.name for row in banwatch.OPTIONS]
    assert {name for name in names if names.count(name) > 1} == {'source', 'program', 'maxretry', 'findtime', 'key', 'port', 'protocol', 'forward', 'regex'}


def test_every_option_is_used_by_the_program():
    text = open(banwatch.__file__, encoding='utf-8').read()
    for row in banwatch.OPTIONS:
        if row.section == 'action' and row.name.startswith('action'):      # actionban is asked for as 'ban'
            assert "'%s'" % row.name[6:] in text.partition('class ActionRunner')[2], row.name
        elif row.name not in ('enabled', 'filter'):
            assert "['%s']" % row.name in text or "'report', '%s')" % row.name in text or "'%s'" % row.name in text.partition('def jail_filter')[2][:400], row.name


def test_ports_have_names_and_ranges():
    assert banwatch.port_list('ssh, 8000-8080 https') == '22,8000:8080,443'
    assert banwatch.port_list('0:65535') == banwatch.port_list('') == ''


def test_the_printed_configuration_reads_back_the_same():
    text = ('[banwatch]\nsource = /a\n    fifo:/b\nsave = 2h\n[DEFAULT]\nmaxretry = 4\n[luci]\nenabled = false\n'
            '[office]\nfilter = sshd\nfailregex = ^a <HOST>\n    ^b <HOST>\n[action tell]\nactionban = a <ip>\n    b "c d"\n'
            '[proxy p]\nprogram = sslh\nkeep = 5m\n[crowdsec]\nurl = http://192.0.2.1:8080\nkey = k\n[report]\nto = me@example.org\n[rule mine]\nregex = ^a\n    ^b\n[rule dns]\nreport = ignore\n')
    made = config(text)
    printed = banwatch.config_text(made)
    again = config(printed)
    for row in banwatch.OPTIONS:
        for section in {'banwatch': ['banwatch'], 'crowdsec': ['crowdsec'], 'report': ['report'], 'action': ['action tell'], 'proxy': ['proxy p'], 'rule': ['rule mine', 'rule dns']}.get(
                row.section, ['DEFAULT', 'luci', 'office', 'sshd']):
            assert again.get(section, row.name) == made.get(section, row.name), (section, row.name)
    assert banwatch.config_text(again) == printed


def test_the_shipped_conf_is_what_check_prints_without_a_conf():
    with open(os.path.join(ROOT, 'banwatch.conf'), encoding='utf-8') as f:
        assert f.read() == banwatch.config_text(banwatch.Config()) + '\n'


def test_every_option_stands_in_the_shipped_conf_with_its_default_and_a_reason():
    with open(os.path.join(ROOT, 'banwatch.conf'), encoding='utf-8') as f:
        text = f.read()
    for row in banwatch.OPTIONS:
        last, comment = row.help.split('\n')[-1], '; ' * (row.section in banwatch.NAMED_SECTIONS)       # there is none by default
        assert '; %s\n%s%s\n' % (last, comment, ('%s = %s' % (row.name, row.default)).rstrip()) in text, row.name
