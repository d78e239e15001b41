use super::*;
use proptest::prelude::*;

const MS: Duration = Duration::from_millis(1);

fn settings(interval: u64, detect_mult: u8) -> Settings {
    let interval = Duration::from_millis(interval);
    Settings { desired_min_tx: interval, required_min_rx: interval, detect_mult }
}

fn session(settings: Settings) -> Session {
    Session::new(settings, NonZeroU32::new(7).unwrap(), 42)
}

fn packet(state: State) -> Packet {
    Packet {
        diagnostic: Diagnostic::NONE,
        state,
        poll: false,
        is_final: false,
        control_plane_independent: false,
        demand: false,
        detect_mult: 3,
        my_discriminator: NonZeroU32::new(9).unwrap(),
        your_discriminator: 7,
        desired_min_tx: 50_000,
        required_min_rx: 50_000,
        required_min_echo_rx: 0,
    }
}

/// A session in this state at time 0.
fn in_state(state: State) -> Session {
    let mut session = session(settings(50, 3));
    match state {
        State::Down => {}
        State::Init => drop(session.received(Duration::ZERO, &packet(State::Down))),
        State::Up => drop(session.received(Duration::ZERO, &packet(State::Init))),
        State::AdminDown => drop(session.admin_down(Duration::ZERO)),
    }
    assert_eq!(session.state(), state);
    session
}

fn sent(outputs: &[Output]) -> Vec<Packet> {
    outputs.iter().filter_map(|o| if let Output::Send(p) = o { Some(*p) } else { None }).collect()
}

fn changes(outputs: &[Output]) -> Vec<Change> {
    outputs.iter().filter_map(|o| if let Output::Changed(c) = o { Some(*c) } else { None }).collect()
}

#[test]
fn a_time_in_which_nobody_could_hear_does_not_count_as_silence() {
    let mut session = in_state(State::Up);
    session.held_up(450 * MS, 400 * MS);
    assert!(changes(&session.tick(549 * MS)).is_empty());
    assert_eq!(session.state(), State::Up);
    session.tick(550 * MS);
    assert_eq!(session.state(), State::Down);
}

#[test]
fn after_a_hold_up_the_neighbour_is_given_a_detection_time_at_most() {
    let mut session = in_state(State::Up);
    // It woke when a packet was due, before the detection time was over.
    session.held_up(10_040 * MS, 10_000 * MS);
    session.tick(10_149 * MS);
    assert_eq!(session.state(), State::Up);
    let mut session = in_state(State::Up);
    session.held_up(1_000 * MS, 10_000 * MS);
    session.tick(1_149 * MS);
    assert_eq!(session.state(), State::Up);
    session.tick(1_150 * MS);
    assert_eq!(session.state(), State::Down);
}

#[test]
fn hold_ups_without_end_do_not_hide_a_dead_path() {
    let mut session = in_state(State::Up);
    // As on a machine that wakes nobody in time.
    let hold_up = |session: &mut Session, now: u32| {
        session.held_up(now * MS, 100 * MS);
        session.tick(now * MS);
        session.state()
    };
    for now in [100, 200, 300, 400] {
        assert_eq!(hold_up(&mut session, now), State::Up, "{now}");
    }
    assert_eq!(hold_up(&mut session, 500), State::Down, "three were taken into account");
    // With a packet between, each of them is.
    let mut session = in_state(State::Up);
    for now in (100..2000).step_by(100) {
        assert_eq!(hold_up(&mut session, now), State::Up, "{now}");
        session.received(Duration::from_millis(now.into()), &packet(State::Up));
    }
}

#[test]
fn every_state_answers_every_state_as_section_6_2_draws_it() {
    use State::*;
    let expected = [
        // received:   AdminDown  Down       Init       Up
        (AdminDown, [AdminDown, AdminDown, AdminDown, AdminDown]),
        (Down, [Down, Init, Up, Down]),
        (Init, [Down, Init, Up, Up]),
        (Up, [Down, Down, Up, Up]),
    ];
    for (state, after) in expected {
        for (received, expected) in State::ALL.into_iter().zip(after) {
            let mut session = in_state(state);
            let outputs = session.received(MS, &packet(received));
            assert_eq!(session.state(), expected, "{state} received {received}");
            let told: Vec<_> = changes(&outputs).iter().map(|c| (c.from, c.to)).collect();
            let changed = if state == expected { vec![] } else { vec![(state, expected)] };
            assert_eq!(told, changed, "{state} received {received}");
            // A change is told at once, and nothing else is.
            let states: Vec<_> = sent(&outputs).iter().map(|p| p.state).collect();
            assert_eq!(
                states,
                changed.iter().map(|c| c.1).collect::<Vec<_>>(),
                "{state} received {received}"
            );
        }
    }
}

type Event = fn(&mut Session) -> Vec<Output>;

/// What is done to a session beside a packet that says a state.
const EVENTS: [(&str, Event); 7] = [
    ("tick too early", |session| session.tick(Duration::ZERO)),
    ("tick, before silence", |session| session.tick(SLOW.min(session.detection_time() - MS))),
    ("tick, silence", |session| session.tick(session.detect_at.unwrap_or(SLOW * 3))),
    ("the same settings", |session| session.configure(MS, settings(50, 3))),
    ("other settings", |session| session.configure(MS, settings(200, 3))),
    ("a poll", |session| {
        let state = session.state();
        session.received(MS, &Packet { poll: true, ..packet(state) })
    }),
    ("AdminDown", |session| session.admin_down(MS)),
];

#[test]
fn every_state_answers_everything_else_as_the_table_says() {
    let mut table = String::new();
    for state in State::ALL {
        table += &format!("{state}\n");
        for (event, happens) in EVENTS {
            let mut session = in_state(state);
            let outputs = happens(&mut session);
            let words: Vec<String> = outputs.iter().map(word).collect();
            table += &format!("  {event:20} -> {} [{}]\n", session.state(), words.join(", "));
        }
    }
    let expected = include_str!("table.txt");
    assert!(table == expected, "the whole table:\n{table}");
}

fn word(output: &Output) -> String {
    match output {
        Output::Changed(change) => format!("{}: {}", change.to, change.diagnostic),
        Output::Send(packet) => {
            let flags = [(packet.poll, " poll"), (packet.is_final, " final")];
            let flags: String = flags.into_iter().filter_map(|(set, word)| set.then_some(word)).collect();
            format!("send {}{flags}, {} ms", packet.state, packet.desired_min_tx / 1000)
        }
    }
}

#[test]
fn silence_takes_a_session_down_after_the_detection_time_and_not_before() {
    for state in [State::Init, State::Up] {
        let mut session = in_state(state);
        assert_eq!(session.detection_time(), 150 * MS);
        session.tick(149 * MS);
        assert_eq!(session.state(), state);
        let outputs = session.tick(150 * MS);
        let change = changes(&outputs)[0];
        assert_eq!((change.to, change.diagnostic), (State::Down, Diagnostic::DETECTION_TIME_EXPIRED));
        assert_eq!(sent(&outputs)[0].your_discriminator, 0, "the neighbour must introduce itself anew");
    }
}

#[test]
fn the_detection_time_is_the_slower_side_times_the_neighbours_multiplier() {
    let mut session = in_state(State::Up);
    session.received(MS, &Packet { desired_min_tx: 400_000, detect_mult: 5, ..packet(State::Up) });
    assert_eq!(session.detection_time(), 2000 * MS);
    session.received(MS, &Packet { desired_min_tx: 10_000, detect_mult: 5, ..packet(State::Up) });
    assert_eq!(session.detection_time(), 250 * MS);
}

#[test]
fn nothing_faster_than_a_second_is_asked_for_until_the_session_is_up() {
    for (state, micros) in [
        (State::Down, 1_000_000),
        (State::Init, 1_000_000),
        (State::AdminDown, 1_000_000),
        (State::Up, 50_000),
    ] {
        assert_eq!(in_state(state).packet(false).desired_min_tx, micros, "{state}");
    }
}

#[test]
fn packets_go_out_at_75_to_100_percent_of_the_slower_sides_interval() {
    let mut session = in_state(State::Up);
    session.received(Duration::ZERO, &Packet { required_min_rx: 200_000, ..packet(State::Up) });
    let mut last = None;
    for _ in 0..100 {
        let due = session.transmit_at().unwrap();
        session.received(due, &Packet { required_min_rx: 200_000, ..packet(State::Up) });
        assert_eq!(sent(&session.tick(due)).len(), 1);
        if let Some(last) = last {
            assert!((150 * MS..=200 * MS).contains(&(due - last)), "{:?}", due - last);
        }
        last = Some(due);
    }
}

#[test]
fn with_a_multiplier_of_one_packets_go_out_at_most_at_90_percent() {
    let mut session = session(settings(2000, 1));
    for _ in 0..100 {
        session.draw_jitter();
        assert!((75..=90).contains(&session.jitter));
    }
}

#[test]
fn a_neighbour_that_wants_nothing_gets_nothing_but_answers_to_its_polls() {
    let mut session = in_state(State::Up);
    let outputs = session.received(MS, &Packet { required_min_rx: 0, poll: true, ..packet(State::Up) });
    assert!(sent(&outputs)[0].is_final);
    assert_eq!(session.transmit_interval(), None);
    assert!(sent(&session.tick(100 * MS)).is_empty());
}

#[test]
fn a_poll_is_answered_at_once_with_final_and_without_poll() {
    let mut session = in_state(State::Up);
    let outputs = session.received(MS, &Packet { poll: true, ..packet(State::Up) });
    let answer = sent(&outputs)[0];
    assert!(answer.is_final && !answer.poll);
}

#[test]
fn the_first_packets_that_are_up_poll_until_they_are_answered() {
    let mut session = session(settings(50, 3));
    let outputs = session.received(Duration::ZERO, &packet(State::Init));
    assert!(sent(&outputs)[0].poll);
    assert!(sent(&session.tick(50 * MS))[0].poll);
    session.received(60 * MS, &Packet { is_final: true, ..packet(State::Up) });
    assert!(!sent(&session.tick(110 * MS))[0].poll);
}

#[test]
fn a_slower_interval_holds_once_the_neighbour_has_agreed() {
    let mut session = in_state(State::Up);
    session.received(MS, &Packet { is_final: true, ..packet(State::Up) });
    let outputs = session.configure(MS, settings(300, 3));
    let poll = sent(&outputs)[0];
    assert!(poll.poll && poll.desired_min_tx == 300_000);
    assert_eq!(session.transmit_interval(), Some(50 * MS));
    assert_eq!(session.rx_in_use, 300 * MS, "we may wait longer at once");
    session.received(2 * MS, &Packet { is_final: true, ..packet(State::Up) });
    assert_eq!(session.transmit_interval(), Some(300 * MS));
}

#[test]
fn a_faster_detection_holds_once_the_neighbour_has_agreed() {
    let mut session = in_state(State::Up);
    session.configure(MS, settings(20, 3));
    assert_eq!(session.rx_in_use, 50 * MS);
    session.received(2 * MS, &Packet { is_final: true, ..packet(State::Up) });
    assert_eq!(session.rx_in_use, 20 * MS);
}

#[test]
fn admin_down_is_told_for_the_neighbours_detection_time_and_names_itself() {
    let mut session = in_state(State::Up);
    let outputs = session.admin_down(MS);
    let told = sent(&outputs)[0];
    assert_eq!((told.state, told.diagnostic), (State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN));
    assert!(!session.is_over(3000 * MS));
    assert!(session.is_over(3001 * MS));
    assert!(session.admin_down(2 * MS).is_empty(), "said once");
}

#[test]
fn a_neighbour_that_stopped_on_purpose_is_told_apart_from_a_dead_path() {
    let stopped = changes(&in_state(State::Up).received(MS, &packet(State::AdminDown)))[0];
    assert!(stopped.neighbor_admin_down);
    let down = changes(&in_state(State::Up).received(MS, &packet(State::Down)))[0];
    assert!(!down.neighbor_admin_down);
    let dead = changes(&in_state(State::Up).tick(150 * MS))[0];
    assert!(!dead.neighbor_admin_down);
}

#[test]
fn a_neighbour_that_restarted_is_told_apart_from_a_dead_path() {
    let fall = |change: &dyn Fn(&mut Packet)| {
        let mut session = in_state(State::Up);
        let mut down = packet(State::Down);
        change(&mut down);
        let changes = changes(&session.received(20 * MS, &down));
        assert_eq!(changes[0].to, State::Down);
        changes[0].is_path_down()
    };
    let anew = NonZeroU32::new(10).unwrap();
    assert!(fall(&|_| ()), "the neighbour that we know does not hear us");
    assert!(!fall(&|p| p.my_discriminator = anew));
    let independent = |p: &mut Packet| (p.my_discriminator, p.control_plane_independent) = (anew, true);
    assert!(fall(&independent), "its BFD alone is new, and its control plane has not heard us either");
    let mut session = in_state(State::Up);
    session.received(20 * MS, &Packet { my_discriminator: anew, ..packet(State::Up) });
    assert!(changes(&session.tick(171 * MS))[0].is_path_down(), "silence is silence");
}

#[test]
fn a_tick_too_many_does_nothing() {
    let mut session = in_state(State::Up);
    session.tick(50 * MS);
    assert!(session.tick(50 * MS).is_empty());
}

/// Two sessions and a path between them that loses what `lost` says.
fn converse(
    seeds: (u64, u64),
    until: Duration,
    mut lost: impl FnMut(Duration, bool) -> bool,
) -> (Session, Session, usize) {
    let new = |d, seed| Session::new(settings(50, 3), NonZeroU32::new(d).unwrap(), seed);
    let mut ends = [new(1, seeds.0), new(2, seeds.1)];
    let (mut now, mut falls) = (Duration::ZERO, 0);
    while now < until {
        for i in 0..2 {
            let mut outputs = ends[i].tick(now);
            let mut to = 1 - i;
            // Answers to answers are bounded: nothing but a poll or a change is answered.
            for _ in 0..8 {
                falls += changes(&outputs).iter().filter(|c| c.from == State::Up).count();
                let packets: Vec<_> = sent(&outputs).into_iter().filter(|_| !lost(now, to == 1)).collect();
                outputs = packets.iter().flat_map(|p| ends[to].received(now, p)).collect();
                to = 1 - to;
            }
        }
        now += MS;
    }
    let [a, b] = ends;
    (a, b, falls)
}

proptest! {
    // Each case is seconds of two sessions' lives.
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn two_ends_come_up_and_stay_up_whatever_their_chance(a in any::<u64>(), b in any::<u64>()) {
        let (a, b, falls) = converse((a, b), 4000 * MS, |_, _| false);
        prop_assert_eq!((a.state(), b.state(), falls), (State::Up, State::Up, 0));
        prop_assert!(!a.polling && !b.polling);
    }

    #[test]
    fn a_path_that_dies_one_way_is_found_by_both(a in any::<u64>(), b in any::<u64>(), deaf in any::<bool>()) {
        let dead = 4000 * MS;
        let (a, b, falls) = converse((a, b), dead + 400 * MS, |now, to_b| now >= dead && to_b == deaf);
        prop_assert!(a.state() != State::Up && b.state() != State::Up);
        prop_assert_eq!(falls, 2);
    }
}
