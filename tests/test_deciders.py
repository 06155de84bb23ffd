"""Fails, Bans and Jail: values and a clock in, a decision out."""
import pytest

import banwatch
from harness import config, failure, jail, login


class Court:
    """A judge with one jail, asked at moments the test names."""

    def __init__(self, name='sshd', limit=1000, maxbans=1000, protected=(), **options):
        jails = banwatch.Jails(config())
        self.jail = jails.by_name[name] = jail(name, **options)
        self.jail.protect([banwatch.make_exempt(text, why) for text, why in protected], {})
        self.luck = 0.0
        self.judge = banwatch.Judge(jails, limit, maxbans, lambda: self.luck)
        self.fails, self.bans = self.judge.fails, self.judge.bans

    def see(self, ip, when, guesses=1, user=None):
        """The BanOrder, with its ban put into force."""
        order = self.judge.weigh(self.jail, failure(ip, when, guesses, user))
        if order:
            self.judge.ban(self.jail, order.network, when, order.seconds, order.failures)
        return order

    def login(self, ip, when, user='root'):
        self.judge.weigh(self.jail, login(ip, when, user))

    def free(self, network):
        self.bans.remove((self.jail.name, network))

    def fall(self, ip, when):
        """Fails until banned; the length of the ban."""
        for _ in range(self.jail.options['maxretry']):
            offence = self.see(ip, when)
        return offence.seconds


# --- Fails

def test_third_failure_within_findtime_bans():
    court = Court(maxretry=3, findtime='10m')
    assert court.see('192.0.2.7', 0) is None
    assert court.see('192.0.2.7', 300) is None
    assert court.see('192.0.2.7', 599) == banwatch.BanOrder('192.0.2.7', 3, 600)


def test_findtime_is_a_sliding_window_not_a_rate():
    court = Court(maxretry=3, findtime='10m')
    for when in (0, 590, 600, 1195, 1201):         # never three within ten minutes
        assert court.see('192.0.2.7', when) is None
    assert court.see('192.0.2.7', 1202)


def test_a_failure_exactly_findtime_ago_no_longer_counts():
    court = Court(maxretry=2, findtime='10m')
    court.see('192.0.2.7', 0)
    assert court.see('192.0.2.7', 600) is None
    assert court.see('192.0.2.7', 1199.9)


def test_a_line_that_stands_for_many_guesses_counts_them_all():
    assert Court(maxretry=5).see('192.0.2.7', 0, guesses=5).failures == 5


def test_addresses_are_counted_each_for_itself():
    court = Court(maxretry=2)
    assert court.see('192.0.2.7', 0) is None
    assert court.see('192.0.2.8', 0) is None


def test_ipv6_is_counted_and_banned_by_64():
    court = Court(maxretry=2)
    court.see('2001:db8:5:6::1', 0)
    assert court.see('2001:db8:5:6:ffff::2', 1).network == '2001:db8:5:6::/64'
    assert court.see('2001:db8:5:7::1', 2) is None


def test_prefixes_are_options():
    court = Court(maxretry=2, ipv4prefix=24, ipv6prefix=128)
    court.see('192.0.2.7', 0)
    assert court.see('192.0.2.200', 0).network == '192.0.2.0/24'
    court.see('2001:db8::1', 0)
    assert court.see('2001:db8::2', 0) is None


def test_memory_of_failures_is_bounded_and_the_least_recently_seen_goes_first():
    court = Court(limit=3, maxretry=2)
    for n, ip in enumerate(('192.0.2.1', '192.0.2.2', '192.0.2.3')):
        court.see(ip, n)
    court.fails.add(('sshd', '192.0.2.1'), 5, 1, 600, 5)          # seen again: now the latest
    court.see('192.0.2.4', 6)
    assert [net for _, net in court.fails.recent] == ['192.0.2.3', '192.0.2.1', '192.0.2.4']


def test_old_failures_are_purged_jail_by_jail():
    fails = banwatch.Fails(10)
    fails.add(('a', '192.0.2.1'), 0, 1, 600, 5)
    fails.add(('b', '192.0.2.1'), 0, 1, 7200, 5)
    fails.add(('gone', '192.0.2.1'), 900, 1, 7200, 5)
    fails.purge(1000, {'a': 600, 'b': 7200})
    assert list(fails.recent) == [('b', '192.0.2.1')]


def test_ten_thousand_addresses_keep_ten_thousand_short_lists():
    fails = banwatch.Fails(10000)
    for n in range(12000):
        fails.add(('sshd', '10.0.%d.%d' % (n >> 8, n & 255)), n, 1, 600, 5)
    assert 9900 <= len(fails.recent) <= 10000


def test_out_of_order_failures_of_a_backlog_are_sorted_in():
    fails = banwatch.Fails(10)
    fails.add('k', 500, 1, 600, 5)
    assert fails.add('k', 100, 1, 600, 5) == 2
    assert fails.recent['k'] == [100, 500]


# --- the length of a ban

def lengths(n=6, luck=0.0, **options):
    settings = config(**options).options('sshd')
    return [banwatch.ban_length(settings, bans, luck) for bans in range(n)]


def test_ban_doubles_each_time_up_to_the_cap():
    assert lengths(bantime='10m', bantime_maxtime='1h') == [600, 1200, 2400, 3600, 3600, 3600]


def test_factor_multiplies_but_never_shortens():
    assert lengths(3, bantime='10m', bantime_factor=2) == [1200, 2400, 4800]
    assert lengths(3, bantime='10m', bantime_factor='0.5') == [600, 600, 1200]


def test_multipliers_replace_doubling_and_the_last_one_stays():
    assert lengths(4, bantime='10m', bantime_multipliers='1 5 30') == [600, 3000, 18000, 18000]


def test_without_increment_every_ban_is_alike():
    assert lengths(3, bantime='10m', bantime_increment='false') == [600, 600, 600]


def test_random_time_is_added_and_still_capped():
    assert lengths(1, luck=0.5, bantime='10m', bantime_rndtime='100s') == [650]
    assert lengths(1, luck=1.0, bantime='10m', bantime_rndtime='1h', bantime_maxtime='20m') == [1200]


def test_bantime_minus_one_is_for_ever_whatever_the_cap():
    assert lengths(3, bantime='-1', bantime_maxtime='1h') == [banwatch.FOREVER] * 3


def test_a_bantime_over_the_cap_is_capped():
    assert lengths(1, bantime='8w', bantime_maxtime='4w', bantime_increment='false') == [4 * 604800]


def test_the_hundredth_ban_does_not_overflow():
    settings = config(bantime='10m').options('sshd')
    assert banwatch.ban_length(settings, 10 ** 6, 0) == 4 * 604800


# --- history

def test_an_address_that_comes_back_is_banned_longer():
    court = Court(maxretry=2, bantime='10m')
    assert court.fall('192.0.2.7', 0) == 600
    court.free('192.0.2.7')
    assert court.fall('192.0.2.7', 1000) == 1200
    assert court.bans.tickets['sshd', '192.0.2.7'].count == 2


def test_unban_keeps_the_history():
    court = Court(maxretry=1, bantime='10m')
    court.fall('192.0.2.7', 0)
    court.free('192.0.2.7')
    assert court.bans.history['sshd', '192.0.2.7'][0] == 1


def test_history_is_forgotten_dbpurgeage_after_the_end_of_the_last_ban():
    bans = banwatch.Bans(10)
    bans.add('sshd', '192.0.2.7', 0, 600, 5)
    bans.remove(('sshd', '192.0.2.7'))
    bans.purge(600 + 86400, 86400)
    assert bans.history
    bans.purge(601 + 86400, 86400)
    assert not bans.history


def test_history_of_a_running_ban_is_never_forgotten():
    bans = banwatch.Bans(10)
    bans.add('sshd', '192.0.2.7', 0, banwatch.FOREVER, 5)
    bans.purge(10 ** 9, 86400)
    assert bans.history


def test_history_never_exceeds_maxbans():
    bans = banwatch.Bans(3)
    for n in range(5):
        bans.add('sshd', '192.0.2.%d' % n, n, 600, 5)
    assert [net for _, net in bans.history] == ['192.0.2.2', '192.0.2.3', '192.0.2.4']


def test_overalljails_counts_the_bans_of_other_jails():
    for overall, seconds in (('false', 600), ('true', 1200)):
        court = Court(maxretry=1, bantime='10m', bantime_overalljails=overall)
        court.bans.add('dropbear', '192.0.2.7', 0, 600, 5)
        assert court.see('192.0.2.7', 0).seconds == seconds


# --- during a ban

def test_failures_during_a_ban_neither_count_nor_ban_again():
    court = Court(maxretry=2, bantime='10m')
    court.fall('192.0.2.7', 0)
    for _ in range(9):
        assert court.see('192.0.2.7', 1) is None
    assert not court.fails.recent


def test_extend_makes_a_ban_longer_with_each_further_attempt_up_to_the_cap():
    court = Court(maxretry=1, bantime='10m', bantime_extend='5m', bantime_maxtime='20m')
    court.see('192.0.2.7', 0)
    assert court.see('192.0.2.7', 100).seconds == 500 + 300
    assert court.bans.tickets['sshd', '192.0.2.7'].until == 900
    assert court.see('192.0.2.7', 100, guesses=9).seconds == 1200
    assert court.bans.tickets['sshd', '192.0.2.7'].count == 1


def test_extend_leaves_a_permanent_ban_alone():
    court = Court(maxretry=1, bantime='-1', bantime_extend='5m')
    court.see('192.0.2.7', 0)
    assert court.see('192.0.2.7', 1) is None


# --- ends and limits

def test_tickets_end_in_order_and_an_extended_one_later():
    court = Court(maxbans=10)
    bans = court.bans
    for net, seconds in (('192.0.2.1', 30), ('192.0.2.2', 10), ('192.0.2.3', 20), ('192.0.2.4', banwatch.FOREVER)):
        bans.add('sshd', net, 0, seconds, 5)
    bans.add('sshd', '192.0.2.2', 5, 100, 5)
    ended = []
    for ticket, _ in court.judge.leaving(31):
        ended.append(ticket.network)
        bans.remove(ticket.key)
    assert ended == ['192.0.2.3', '192.0.2.1']


def test_over_maxbans_those_go_first_who_have_been_silent_longest_permanent_or_not():
    court = Court(maxbans=3, maxretry=1)
    for n, seconds in ((1, banwatch.FOREVER), (2, 50), (3, 500)):
        court.bans.add('sshd', '192.0.2.%d' % n, n, seconds, 5)
    assert list(court.judge.leaving(3)) == []
    court.see('192.0.2.1', 10)                       # tries again, although it is banned
    for n in 4, 5:
        court.bans.add('sshd', '192.0.2.%d' % n, n, 20, 5)
    assert [(ticket.network, why) for ticket, why in court.judge.leaving(10)] == [('192.0.2.2', 'maxbans'), ('192.0.2.3', 'maxbans')]
    assert court.bans.dropped == 2


def test_the_heap_of_ends_does_not_grow_with_extensions():
    bans = banwatch.Bans(10)
    for n in range(1000):
        bans.add('sshd', '192.0.2.1', n, 600, 5)
    assert len(bans.ends) < 100


# --- never banned

PROTECTED = [('192.168.1.0/24', 'the LAN'), ('203.0.113.254', 'a gateway'), ('9.9.9.9', 'a resolver'),
             ('2001:db8:5::1', 'this machine')]


@pytest.mark.parametrize('ip', ['192.168.1.77', '203.0.113.254', '9.9.9.9', '127.0.0.1', '::1', '2001:db8:5::1',
                                '169.254.3.4', 'fe80::1', '224.0.0.5', 'ff02::1', '0.0.0.0', '255.255.255.255'])
def test_our_own_are_never_banned_and_never_counted(ip):
    court = Court(maxretry=1, protected=PROTECTED)
    assert court.see(ip, 0) is None
    assert not court.fails.recent and court.jail.ignored == 1


@pytest.mark.parametrize('nested', [['192.168.1.0/24', '192.168.1.1'], ['192.168.1.1', '192.168.1.0/24'], ['192.168.1.0/24', '192.168.1.128/25']])
def test_what_is_exempt_inside_of_an_exempt_network_takes_nothing_from_it(nested):
    court = Court(maxretry=1, protected=[(text, 'ours') for text in nested])
    assert [court.see('192.168.1.%d' % n, 0) for n in (0, 1, 2, 127, 128, 255)] == [None] * 6
    assert court.see('192.168.2.1', 0)


def test_ignoreip_takes_addresses_and_networks():
    court = Court(maxretry=1, ignoreip='198.51.100.0/24, 2001:db8:9::/48 203.0.113.9')
    for ip in ('198.51.100.200', '2001:db8:9:8::1', '203.0.113.9'):
        assert court.see(ip, 0) is None
    assert court.see('203.0.113.10', 0)


@pytest.mark.parametrize('text, means', [
    ('::ffff:10.0.0.0/104', '10.0.0.0/8'), ('::ffff:192.0.2.7/128', '192.0.2.7'), ('::ffff:0:0/96', '0.0.0.0/0'), ('::/0', '::/0'),
    ('::ffff:192.0.2.7', '192.0.2.7'), ('2001:db8::/32', '2001:db8::/32')])
def test_an_ipv4_mapped_network_is_one_of_ipv4(text, means):
    assert banwatch.network_of(text) == means


def test_a_mapped_network_in_ignoreip_protects_what_it_means():
    court = Court(maxretry=1, ignoreip='::ffff:10.0.0.0/104')
    assert court.see('10.1.2.3', 0) is None and court.see('11.1.2.3', 0)


def test_ignoreself_can_be_switched_off():
    assert Court(maxretry=1, protected=PROTECTED, ignoreself='false').see('192.168.1.77', 0)


def test_a_64_that_holds_one_of_ours_is_banned_by_single_addresses_only():
    court = Court(maxretry=2, protected=PROTECTED)
    court.see('2001:db8:5::66', 0)
    assert court.see('2001:db8:5::66', 0).network == '2001:db8:5::66'


def test_in_our_own_64_each_neighbour_is_counted_for_himself_before_a_ban_and_after():
    court = Court(maxretry=3, protected=PROTECTED)
    assert [bool(court.see('2001:db8:5::66', n)) for n in range(3)] == [False, False, True]
    assert [bool(court.see('2001:db8:5::%x' % n, n)) for n in range(0x67, 0x70)] == [False] * 9
    assert court.see('2001:db8:5::70', 5) is None and court.jail.failures == 13


def test_an_ipv4_network_that_holds_one_of_ours_is_banned_by_single_addresses_only():
    court = Court(maxretry=1, protected=PROTECTED, ipv4prefix=16)
    assert court.see('192.168.2.9', 0).network == '192.168.2.9'


# --- logins

def test_after_a_login_the_same_user_may_mistype_for_a_while():
    court = Court(maxretry=2, ignorelogin='1h')
    court.login('192.0.2.7', 0)
    for when in range(1, 9):
        assert court.see('192.0.2.7', when, user='root') is None
    court.see('192.0.2.7', 3601, user='root')
    assert court.see('192.0.2.7', 3602, user='root')


def test_a_login_forgives_no_other_user_and_no_other_address():
    court = Court(maxretry=1)
    court.login('192.0.2.7', 0)
    assert court.see('192.0.2.7', 1, user='admin')
    assert court.see('192.0.2.8', 1, user='root')


def test_a_login_forgives_no_failure_without_a_name():
    court = Court(maxretry=1)
    court.login('192.0.2.7', 0)
    assert court.see('192.0.2.7', 1, user=None)


def test_a_login_never_lifts_a_ban_and_a_banned_address_earns_nothing_by_it():
    court = Court(maxretry=1, bantime='10m')
    court.see('192.0.2.7', 0)
    court.login('192.0.2.7', 1)
    assert ('sshd', '192.0.2.7') in court.bans.tickets
    court.free('192.0.2.7')
    assert court.see('192.0.2.7', 700, user='root')


def test_ignorelogin_zero_forgives_nothing():
    court = Court(maxretry=1, ignorelogin='0')
    court.login('192.0.2.7', 0)
    assert court.see('192.0.2.7', 1, user='root')


def test_logins_are_bounded():
    court = Court()
    for n in range(1500):
        court.login('10.0.%d.%d' % (n >> 8, n & 255), n)
    assert 950 <= len(court.jail.logins) <= 1000


# --- addresses that hold another one

@pytest.mark.parametrize('ip, net', [
    ('64:ff9b::cb00:7101', '64:ff9b::cb00:7101'), ('2001:0:1::5', '2001:0:1::5'), ('2002:c000:207:5::1', '2002:c000:207::/48'),
    ('2001:db8:1:2::5', '2001:db8:1:2::/64')])
def test_who_stands_behind_a_translator_is_counted_for_himself(ip, net):
    court = Court(maxretry=1)
    assert court.see(ip, 0).network == net


def test_a_login_takes_back_the_latest_failures_that_it_names():
    court = Court(maxretry=3, ignorelogin='0')
    for when in (0, 1):
        court.see('192.0.2.7', when, user='root')
    court.judge.weigh(court.jail, login('192.0.2.7', 2, 'root')._replace(guesses=1))
    assert court.jail.failures == 1 and court.see('192.0.2.7', 3) is None and court.see('192.0.2.7', 4)
    court.judge.weigh(court.jail, login('192.0.2.8', 2, 'root')._replace(guesses=1))
    assert ('sshd', '192.0.2.8') not in court.fails.recent
