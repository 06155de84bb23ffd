"""Faults that the tests must find: each row of FAULTS undoes one mend of the project's history, or one of its promises.

    python tests/planted.py [NAME...]       plants each (or these) in a copy, and runs the tests that are to find it
    python tests/planted.py --check         only looks whether each can still be planted
"""
import collections
import os
import shlex
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.dirname(HERE)
COPIED = 'banwatch.py', 'README', 'banwatch.conf', 'init.d', 'tests'
ENDED = {0: 'the tests passed', 2: 'the run was interrupted', 3: 'pytest failed', 4: 'pytest did not understand',
         5: 'there is no such test'}

# `text` stands in banwatch.py once; `instead` is the fault; `tests` are arguments for pytest, as a shell parts them
Fault = collections.namedtuple('Fault', 'name why text instead tests')
FAULTS = [Fault(*row) for row in (
    # found while the file was read
    ('filter-heals', "a regex's trouble is over after ten quiet minutes",
     'if now - self.last > CALM_SECONDS:', 'if False:', 'tests/test_daemon.py -k ten_minutes'),
    ('request-bug', 'a bug in a request is answered as a bug',
     'except Exception:                          # the loop reports', 'except SystemExit:                          # the loop reports',
     'tests/test_daemon.py -k told_as_one'),
    ('reread-stdin', 'a conf from standard input cannot be read again',
     "if conf == '-':\n        raise Problem('a conf", "if False:\n        raise Problem('a conf", 'tests/test_commands.py -k stays_in_force'),
    ('replay-purge', 'a replay forgets history as the daemon does',
     'judge.purge(event.when, self.keep_for)', 'pass', 'tests/test_trial.py -k dbpurgeage'),
    ('alerts-at-stop', 'mails at once are sent before a stop ends',
     'return not (self.mailer.running or self.alerts.running or self.alerts.due())', 'return not self.mailer.running',
     'tests/test_mail.py -k on_its_way_and_sends'),
    ('alerts-lost', 'mails at once that a stop has cost are on file',
     '        if self.store.live_dirty and not self.dry_run:\n            self.store.save_all()', '        pass',
     'tests/test_mail.py -k does_not_go_at_a_stop'),
    ('child-hangs', 'a program that hangs in the kernel does not hold up a stop',
     'process.wait(1)  ', 'process.wait()  ', 'tests/test_sources.py -k hangs_in_the_kernel'),
    ('late-answer', 'a ban by hand is answered in time',
     'after(ANSWER_SECONDS, late)', 'after(1e6, late)', 'tests/test_daemon.py -k answered_in_time'),
    ('page-link', 'a link that --html names stays one',
     'path = os.path.realpath(name)', 'path = name', 'tests/test_commands.py -k link_stays'),
    # Values
    ('nested-exempt', 'an exempt network inside of another one does not shorten it',
     'lasts[-1] = max(last, lasts[-1])', 'lasts[-1] = last', 'tests/test_deciders.py -k exempt_inside'),
    ('raw-text', "text of a log cannot move a terminal's cursor",
     "c.encode('unicode_escape').decode() for c in text)", 'c for c in text)',
     'tests/test_conf.py -k text_for_a_terminal'),
    # Conf
    ('ipv6-64', 'IPv6 addresses are counted and banned by /64',
     "prefix_length(32, 128), '64'", "prefix_length(32, 128), '128'", 'tests/test_deciders.py -k ipv6_is_counted'),
    ('ignoreself', 'the machine, its LAN, gateway and resolvers are never banned by default',
     "'ignoreself', flag, 'true'", "'ignoreself', flag, 'false'", 'tests/test_deciders.py -k our_own_are_never'),
    ('luci-login', 'a login that LuCI logs forgives nobody',
     "'http,https', 'ignorelogin': '0'}", "'http,https'}", 'tests/test_filters.py -k luci_logs_forgives'),
    ('scan-forward', 'bans of kernel-scan never touch what is forwarded',
     ", forward='false')", ')', 'tests/test_daemon.py -k keeps_the_options'),
    ('log-in-argument', 'text of the log is in no argument of an action',
     "if tag in LOG_TAGS or tag.startswith('F-'):", "if tag in LOG_TAGS:",
     'tests/test_actions.py -k logs_text_in_an_argument'),
    # Lines
    ('repeats', 'message repeated counts a hundred times at most',
     'min(times, MOST_TIMES, max(0', 'min(times, max(0', 'tests/test_lines.py -k hundred'),
    ('cut-line', 'a line that was cut never ends like a whole one',
     r"LONG.sub(br'\1 [cut]', block)", r"LONG.sub(br'\1', block)", 'tests/test_language.py -k its_cut_end'),
    ('log-prefix', 'a prefix is believed only where logins are logged',
     '(?P<auth>3[2-9]|8[0-7])', r'(?P<auth>\d{1,3})', 'tests/test_lines.py -k prefix_is_believed'),
    ('facility-5424', 'RFC 5424 is of no facility that is believed more than others',
     '(8 + (int(priority) & 7),', '(int(priority),', 'tests/test_filters.py -k gets_its_verdict'),
    ('date-day', 'a day that is not in the calendar is no date',
     'real = there.tm_mday == (day or 1) ', 'real = True ', 'tests/test_language.py -k calendar'),
    # Filters
    ('include-path', 'an include is relative to the file that has it',
     'os.path.normpath(os.path.join(directory, name))', 'os.path.normpath(name)',
     'tests/test_language.py -k relative_include'),
    ('filter-here', 'without a conf no filter comes from the current directory',
     "if conf in (NO_CONF, '-'):\n        return ''", "if conf == '-':\n        return ''",
     'tests/test_commands.py -k without_a_conf'),
    ('guard-own-regex', 'a regex of the conf on a built-in filter runs under the watchdog',
     'definition.foreign or bool(failregex) or not all(', 'definition.foreign or not all(',
     'tests/test_language.py -k unless_all_of_it_is_built_in'),
    ('guard-file', 'a filter with `program` from a file runs under the watchdog',
     'self.foreign = self.foreign or directory != BUILT_IN', 'pass',
     'tests/test_language.py -k unless_all_of_it_is_built_in'),
    ('ignore-runaway', 'who makes an ignoreregex run away is counted all the same',
     "matches_any, self.ignore, text)\n        except Runaway:\n            return False",
     "matches_any, self.ignore, text)\n        except Runaway:\n            return True",
     'tests/test_daemon.py -k makes_an_ignoreregex'),
    ('runaway-rests', 'a filter whose regexes run away again and again rests for a minute',
     'MOST_RUNAWAYS = 3 ', 'MOST_RUNAWAYS = 30 ', 'tests/test_language.py -k after_three'),
    ('wiped-guesses', 'a login to an own account wipes no guesses at another one',
     'if verdict == LOGIN and known == user:', 'if verdict == LOGIN:',
     'tests/test_filters.py -k "guesses or login"'),
    ('udp-login', 'a login that comes by UDP forgives nobody',
     'if not (forged and event.login):', 'if True:', 'tests/test_filters.py -k comes_by_udp'),
    # Judge
    ('findtime', 'failures older than findtime do not count',
     'if moments[0] <= moments[-1] - seconds:', 'if False:', 'tests/test_deciders.py -k findtime'),
    ('maxtracked', 'memory of failures is bounded',
     'if len(self) > self.limit:', 'if False:', 'tests/test_deciders.py -k failures_is_bounded'),
    ('maxtime', 'no ban is longer than bantime.maxtime',
     "return min(seconds, options['bantime.maxtime'])", 'return seconds', 'tests/test_deciders.py -k cap'),
    ('full-table', 'a full table lifts those who have been silent longest, not who attacks now',
     'islice(bans.tickets.values(), surplus)', 'islice(reversed(list(bans.tickets.values())), surplus)',
     'tests/test_daemon.py -k who_attacks_now'),
    ('running-history', 'history of a running ban is never forgotten',
     'last < now - age and key not in self.tickets]', 'last < now - age]', 'tests/test_deciders.py -k running_ban'),
    ('neighbour', 'in a network with an exempt address each address is counted for itself',
     'if net != ip and self.refusal(net):', 'if False:', 'tests/test_deciders.py -k one_of_ours'),
    ('piled-guesses', 'a login forgives one guess, not what has piled up',
     'event.guesses == 1 and until > event.when', 'until > event.when', 'tests/test_filters.py -k forgives_one_guess'),
    ('recidive-ports', 'recidive counts no bans that are narrower than its own',
     "return not one['port']", 'return True', 'tests/test_daemon.py -k narrower'),
    # Firewalls
    ('jump-first', 'our jump stands before all other rules',
     "            return ''\n        return 'not first'\n", "            return ''\n        return ''\n",
     'tests/test_firewalls.py -k damage_is_noticed'),
    ('timeout', 'the kernel never lets go before the ticket does',
     'max(1, -((now - until) // 1))', 'max(1, (until - now) // 1)',
     'tests/test_firewalls.py -k timeout_is_never_shorter'),
    ('nft-again', 'nft deletes nothing that is not there, or the whole batch would fail',
     "for verb in ('add', 'delete')\n", "for verb in ('delete',)\n",
     'tests/test_firewalls.py -k unbanned_and_what_is_there'),
    ('foreign-set', 'a set of somebody else is not taken for ours',
     r"r'%s-%d(-\d+)?(-new)?$' % (name, family)", 'name',
     'tests/test_firewalls.py -k set_of_somebody_else'),
    ('wait-form', 'an iptables that knows no -w is told to wait in its own way',
     'if problem and form + 1 < len(forms) and NO_SUCH_OPTION.search(problem):', 'if False:',
     'tests/test_choice.py -k old_iptables'),
    ('locked', 'where nothing waits for the lock, exit code 4 is a reason to try again',
     'elif forms is WAITS and form and code == LOCKED and tries < LOCK_TRIES:', 'elif False:',
     'tests/test_choice.py -k "old_iptables or one_at_a_time"'),
    ('one-at-a-time', 'where nothing waits for the lock, the tools run one at a time',
     'alone = forms is WAITS and not WAITS[form]', 'alone = False', 'tests/test_choice.py -k one_at_a_time'),
    # State
    ('state-clock', 'after a reboot only a wall clock that can be true says how much time has passed',
     'if SANE <= then <= wall < then + TOO_LONG:', 'if True:', 'tests/test_state.py -k reboot'),
    ('state-boot', 'in the same boot the boot clock decides',
     "if state.get('boot') == boot and", 'if False and', 'tests/test_state.py -k same_boot'),
    ('state-row', 'a bad row of a state file costs that row only',
     '(ValueError, TypeError, KeyError, OverflowError, RecursionError)', 'OverflowError',
     'tests/test_state.py -k "bad_row or mutilations"'),
    # Machine
    ('state-symlink', 'a symlink is not read as a state file',
     'os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK', 'os.O_RDONLY | os.O_NONBLOCK', 'tests/test_state.py -k symlink'),
    ('state-writable', 'a state file that others may write is not trusted',
     'there.st_uid != os.geteuid() or there.st_mode & 0o022', 'there.st_uid != os.geteuid()',
     'tests/test_state.py -k others_may_write'),
    ('file-mode', 'files of ours are ours alone',
     'def replace(self, path, text, mode=0o600)', 'def replace(self, path, text, mode=0o644)',
     'tests/test_state.py -k ours_alone'),
    ('kill-all', 'nothing of ours runs on after a stop',
     '        self.machine.kill_all()\n\n    def settle', '\n    def settle',
     'tests/test_choice.py -k runs_on_after_a_stop'),
    ('line-down', 'while the line is down its network does not become a LAN',
     'self.outward = outward or self.outward', 'self.outward = outward',
     'tests/test_end_to_end.py -k read_from_the_kernel'),
    # Worker
    ('script-bug', 'a bug in a firewall is told and tried again',
     "self.ended('a bug; the log has its traceback')", 'pass', 'tests/test_choice.py -k bug_in_a_firewall'),
    # Sources
    ('long-line', 'a line of a megabyte does not fill the memory',
     'if len(self.partial) <= PLAIN_LINE:', 'if True:', 'tests/test_sources.py -k megabyte'),
    ('dev-log', 'a new log daemon is noticed by its socket',
     'inode(self.SOCKET) not in (None, self.socket)', 'False', 'tests/test_sources.py -k noticed_within_a_minute'),
    ('ring-zone', 'a ring that is told in another time zone is known again',
     "line[13:] if line[13:14] == b':' else line", 'line', 'tests/test_sources.py -k time_zone'),
    ('refilled', 'a file that was truncated and refilled past the old offset is noticed',
     'if size >= file.offset and fingerprint(file.fd, at - file.mark[0],\n' + 47 * ' ' + 'file.mark[0]) == file.mark:',
     'if size >= file.offset:',
     'tests/test_sources.py -k refilled_past'),
    ('udp-loopback', 'UDP listens on loopback unless told otherwise',
     "or '127.0.0.1', int(port))", "or '0.0.0.0', int(port))", 'tests/test_sources.py -k loopback'),
    # Wall
    ('after-failure', 'after a failure all rules are written from scratch',
     'self.need = CHECK\n        else:\n            self.need = REBUILD', 'self.need = CHECK\n        else:\n            self.need = CHECK',
     'tests/test_choice.py -k "told_once and exits"'),
    ('asked-meanwhile', 'what is asked for while something is under way comes afterwards',
     '        self.new = []\n\n    def run_one', '        self.new, self.need = [], NOTHING\n\n    def run_one',
     'tests/test_choice.py -k whatever_happens'),
    ('cut-ports', 'a ban of some ports ends no connection to others',
     'if not (there or scope.ports) and wanted:', 'if not there and wanted:', 'tests/test_choice.py -k some_ports'),
    ('counters-again', 'what a killed daemon has told of the counters is not told again',
     'before, self.counted = self.counted, counters', 'before, self.counted = self.counted or {}, counters',
     'tests/test_report_attacks.py -k counters'),
    ('each-minute', 'each minute the kernel is compared',
     'self.need = max(self.need, CHECK)', 'pass', 'tests/test_daemon.py -k every_minute'),
    ('slipped-in', 'rules are rendered without what is ours',
     'if self.handles(ticket.network) and not self.refused(ticket)]', 'if self.handles(ticket.network)]',
     'tests/test_daemon.py -k slipped_in'),
    ('one-family', 'a missing ip6tables never stops IPv4',
     'if sync.firewall.family in (4, None)]', ']', 'tests/test_choice.py -k missing_ip6tables'),
    # Store
    ('put-aside', 'a state file that does not load is put aside',
     '(ValueError, RecursionError, OSError) as e', '(RecursionError, OSError) as e',
     'tests/test_daemon.py -k put_aside'),
    ('newer-kept', 'a kept state that is newer than the live one holds',
     'if live and kept and kept.age < live.age and not', 'if False and not', 'tests/test_daemon.py -k full_tmp'),
    ('save-postponed', 'a restart does not postpone the copy on flash',
     'self.flash_dirty_since = state.dirty_since', 'self.flash_dirty_since = None', 'tests/test_life.py -k each_save'),
    ('flash-wear', 'the copy on flash is written at most every `save`',
     'self.flash_dirty_since + self.save_every)', 'self.flash_dirty_since + 1)', 'tests/test_daemon.py -k power_loss'),
    # Control
    ('socket-mode', 'only our own user can reach the socket',
     'os.chmod(path, 0o600)', 'os.chmod(path, 0o666)', 'tests/test_commands.py -k ours_alone'),
    ('request-bytes', 'a client that talks too much is dropped',
     ' or len(self.request) > REQUEST_BYTES', '', 'tests/test_daemon.py -k talks_too_much'),
    # Daemon
    ('future-backlog', 'a backlog that a wrong clock cannot place bans nobody',
     'return now\n                return None', 'return now\n                return now', 'tests/test_clocks.py -k cannot_place_bans'),
    ('old-backlog', 'a backlog is as old for a jail as its own findtime says',
     "if event.when > now - jail.options['findtime']:", 'if True:', 'tests/test_daemon.py -k own_findtime'),
    ('live-lines', 'live lines count as now, whatever their date',
     'moment = lambda date: now', 'moment = own_time', 'tests/test_daemon.py -k live_lines'),
    ('door-in', 'what is ours is not banned by hand either',
     "            return 'overlaps ' + refusal\n", '            pass\n', 'tests/test_daemon.py -k by_hand_of_ours'),
    ('becomes-ours', 'an address that becomes ours is released',
     '        elif not self.resting:\n            return\n', '        return\n',
     'tests/test_daemon.py -k becomes_ours'),
    ('reload-counts', 'a reload keeps what is counted',
     '        jails.adopt(self.judge.jails)\n', '', 'tests/test_daemon.py -k a_reload_keeps'),
    ('stop-bounded', 'a stop does not wait for ever',
     'self.loop.after(STOP_SECONDS, self.give_up)', 'None', 'tests/test_daemon.py -k stop_does_not_wait'),
    # Commands
    ('way-out', 'a mistake in the conf never bars the way out',
     'read_conf(conf, strict=False), dict(more', 'read_conf(conf), dict(more', 'tests/test_commands.py -k way_out'),
    ('module-path', 'nothing is imported from where strangers may write',
     '    del sys.path[:OWN_PATH', '    sys.path[:OWN_PATH', 'tests/test_commands.py -k no_module'),
    # Language
    ('line-guard', 'every line of a foreign filter is guarded',
     'self.guarded(wall, len(text), self.match, text, wall, date)', 'self.match(text, wall, date)',
     'tests/test_language.py -k every_line_of_a_foreign'),
    # Actions
    ('never-told', 'a ban that ends before its turn is never told',
     "self.queue.pop(('ban', ticket.key), None)", 'pass', 'tests/test_actions.py -k before_its_turn'),
    # Tally
    ('wall-hours', 'hours of the report are those of the wall clock',
     'int((when + self.offset) // 3600)', 'int(when // 3600)', 'tests/test_report.py -k wall_clock'),
    ('flash-names', 'names that may be passwords are not kept on flash',
     'keys = [key for key in keys if cells[key][3]]', 'pass', 'tests/test_report.py -k one_address_only'),
    # Digest
    ('names-first', 'names are taken out of a line before its numbers',
     "VARIABLE.sub('*', unnamed(message, '*'))", "unnamed(VARIABLE.sub('*', message), '*')",
     'tests/test_report_attacks.py -k password'),
    ('example-name', 'a name that was typed is in no example',
     'pattern, level), clipped(unnamed(message))', 'pattern, level), clipped(message)',
     'tests/test_report.py -k name_that_was_typed'),
    ('kernel-room', 'a flood of ever new lines does not hide what the kernel says',
     "self.may_analyse(b' kernel: ' in known, now)", 'self.may_analyse(False, now)',
     'tests/test_report_attacks.py -k kernel_says'),
    # Summary
    ('clock-unset', 'no mail goes before the clock is set',
     '        if machine.wall() < SANE:\n            raise', '        if False:\n            raise',
     'tests/test_mail.py -k before_the_clock'),
    ('came-back', 'a mail that does not go is part of the next one',
     '            report.came_back()\n', '', 'tests/test_mail.py -k part_of_the_next'),
    ('one-mail', 'two sends at once send one mail',
     '        if self.running:             # that one is as good', '        if False:',
     'tests/test_mail.py -k two_sends'),
    ('mailmax', 'mailmax an hour is all',
     'if len(self.sent) >= most and', 'if False and', 'tests/test_mail.py -k mailmax'),
    ('marked-repeat', 'a mail that may be a repeat says so',
     'wing.save_all()                            # says that', 'pass  # says that',
     'tests/test_mail.py -k crash_while'),
    # Replay
    ('replay-recidive', 'a replay bans who was banned often',
     '                self.obey(other, more, order, dated)\n', '                pass\n', 'tests/test_trial.py -k five_times'),
    # Doctor
    ('doctor-bug', 'a check that fails does not stop the others',
     '# what a friend cannot see is no reason to go home\n            except Exception as e:', 'except KeyError as e:',
     'tests/test_doctor.py -k does_not_stop_the_others'),
    ('doctor-left', 'what a doctor tries in the kernel is gone afterwards',
     '        left = remove_trial_rules(machine, trial)\n', "        left = ''\n",
     'tests/test_doctor.py -k on_a_real_router'),
    # Install
    ('last-line', 'files of others come out as they went in',
     'text = new + text\n', 'text = text + new\n',
     'tests/test_install.py -k files_of_others'),
    ('changed-conf', 'a conf that somebody has changed stays',
     'if self.there(place.conf) == self.conf_text():', 'if self.there(place.conf) is not None:',
     'tests/test_install.py -k changed_conf'),
    ('twice', 'install twice is the same as once',
     'if self.there(path) == text:', 'if False:', 'tests/test_install.py -k twice'),
    ('dry-install', 'a dry run writes nothing',
     'if act and not self.dry_run:', 'if act:', 'tests/test_install.py -k dry_run_says'),
    # Appendix
    ('backslashes', 'a name of backslashes, cut at 255 bytes, bans nobody',
     "verdict != LOGIN and may_be_cut(", "verdict == NOFAIL and may_be_cut(", 'tests/test_filters.py -k cut_bans_nobody'),
    ('low-port', 'dropbear: an IPv6 client with a low port is seen',
     r'(?::\d+|(?<=\]):?)', r':\d+', 'tests/test_filters.py -k gets_its_verdict'),
    ('probe', 'dropbear: a connection that names no user is no guess',
     'mode-normal = ^<F-NOFAIL>Exit before auth</F-NOFAIL> from', 'mode-normal = ^Exit before auth from',
     'tests/test_filters.py -k "verdict or stricter"'),
    # lists, names, traps, the fleet, proxies, programs
    ('name-kept', 'a host name that cannot be looked up stands for what it did',
     'self.by_name[name].known = self.by_name[name].known or self.kept.pop(name, [])', 'pass', 'tests/test_lists.py -k after_a_restart'),
    ('name-many', 'a host name that stands for too many is not believed',
     'if len(found) > MOST_ADDRESSES:', 'if False:', 'tests/test_lists.py -k too_many'),
    ('hub-exempt', 'what a CrowdSec decides is never over an exempt range',
     '            if jail.refusal(net):\n                refused.append(net)\n            elif', '            if', 'tests/test_fleet.py -k never_banned_is_left_out'),
    ('hub-own', 'our own bans do not come back as those of a CrowdSec',
     'if end is None or until <= end + SAME_END', 'if False', 'tests/test_fleet.py -k come_back'),
    ('hub-whole', 'after trouble all decisions are pulled',
     "        self.whole_at = float('-inf')\n        yield from", '        yield from', 'tests/test_fleet.py -k gone_wrong_all'),
    ('hub-wide', 'a decision that bans half of the Internet is not used',
     "if '/' in net and int(net.partition('/')[2]) < WIDEST[span(net)[0]]:", 'if False:', 'tests/test_fleet.py -k bans_no_network'),
    ('hub-longest', 'of too many decisions the longest are taken',
     'for net in sorted(self.new, key=self.new.get)[:surplus]:', 'for net in list(self.new)[-surplus:]:', 'tests/test_fleet.py -k too_many_those'),
    ('hub-bounded', 'an answer that does not end is cut off',
     'if len(self.text) > OBJECT_BYTES: ', 'if False: ', 'tests/test_fleet.py -k takes_memory'),
    ('hub-token', 'a token that is none goes into no header',
     "'[!-~]{1,4096}', token):", "'(?s).*', token):", 'tests/test_fleet.py -k no_header'),
    ('proxy-name', 'the port of a proxy is the one behind the address',
     'm = at and PORT_BEHIND.match(block, at)', 'm = at and PORT_BEHIND.search(block, at)', 'tests/test_proxies.py -k either_line'),
    ('proxy-nobody', 'what no line of a proxy explains counts for nobody',
     '                    self.proxied[event.ip].hold(jail, event)', '                    self.weigh(jail, event)', 'tests/test_proxies.py -k explains_counts'),
    ('pipe-again', 'a program of an action that ends is told anew who is banned',
     '        for ticket in self.bans.tickets.values():\n            if not self.refused(ticket):\n                self.ban(ticket)\n', '', 'tests/test_pipes.py -k started_again'),
    ('pipe-trust', 'a Python action that others may write to is not run',
     'if there.st_uid not in (0, os.geteuid()) or there.st_mode & 0o022:\n        raise Problem(\'%s: others', 'if False:\n        raise Problem(\'%s: others', 'tests/test_pipes.py -k others_may'),
    ('rule-user', 'a user who is called like a word of `user` is no account',
     "named = user in words and user not in ('exists', 'unknown')", 'named = user in words', 'tests/test_report.py -k ask_for_accounts'),
    ('siege-home', 'who has logged in from there lately does not feel a siege',
     "        if when - self.homes.get((user, net), float('-inf')) < 30 * DAY:\n            return False\n", '', 'tests/test_siege.py'),
)]


def source():
    """The text of banwatch.py."""
    with open(os.path.join(PROJECT, 'banwatch.py'), encoding='utf-8') as f:
        return f.read()


def planted(text, fault):
    """`text` with a fault in it; ValueError if it cannot be planted."""
    times = text.count(fault.text)
    if times != 1:
        raise ValueError('its text stands in banwatch.py %d times' % times)
    return text.replace(fault.text, fault.instead)


def outcome(fault):
    """'found', or why it was not."""
    try:
        text = planted(source(), fault)
    except ValueError as e:
        return str(e)
    with tempfile.TemporaryDirectory() as directory:
        for name in COPIED:
            there, copy = os.path.join(PROJECT, name), os.path.join(directory, name)
            if os.path.isdir(there):
                shutil.copytree(there, copy, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy(there, copy)
        with open(os.path.join(directory, 'banwatch.py'), 'w', encoding='utf-8') as f:
            f.write(text)
        argv = [sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider'] + shlex.split(fault.tests)
        code = subprocess.call(argv, cwd=directory, env=dict(os.environ, PYTEST_DISABLE_PLUGIN_AUTOLOAD='1'),
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return 'found' if code == 1 else 'NOT FOUND: %s (pytest %s)' % (ENDED.get(code, 'exit code %d' % code), fault.tests)


def check(fault):
    """'' if a fault can be planted, and leaves a program that Python can read."""
    try:
        compile(planted(source(), fault), fault.name, 'exec')
    except (ValueError, SyntaxError) as e:
        return str(e)
    return ''


def main(words):
    only_check = '--check' in words
    names = [word for word in words if word != '--check']
    unknown = set(names) - {fault.name for fault in FAULTS}
    if unknown:
        print('there is no fault called so: ' + ' '.join(sorted(unknown)), file=sys.stderr)
        return 64
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    good = 0
    for fault in chosen:
        said = check(fault) or 'can be planted' if only_check else outcome(fault)
        good += said in ('found', 'can be planted')
        print('%-18s %s (%s)' % (fault.name, said, fault.why), flush=True)
    print('%d of %d planted faults %s' % (good, len(chosen), 'can be planted' if only_check else 'are found'))
    return 0 if good == len(chosen) else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
