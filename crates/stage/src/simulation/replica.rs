//! A process of a stage, one small step at a time.

use std::collections::{HashSet, VecDeque};

use causeway_bus::{PublishError, Stored};
use causeway_schemas::{Id, Meta};

use crate::protocol::{Death, KILLED, Step, Way, steps, stored, way};
use crate::stage_life::Verdict;

use super::broker::{Broker, Delivery};
use super::chance::Chance;
use super::{Broken, Item};

/// Inputs that a replica holds at once.
const HELD: usize = 3;

pub(super) struct Replica {
    stage: &'static str,
    from: &'static str,
    tasks: Vec<Task>,
    /// What a fold knows: the ids of its changelog, and how long that is.
    known: HashSet<Id>,
    last: u64,
    broken: Broken,
    /// Counts the ids that a broken one draws.
    drawn: u64,
}

/// An input and what is left to be done with it.
struct Task {
    delivery: Delivery,
    meta: Meta,
    left: VecDeque<Do>,
}

enum Do {
    /// Raises a mark, or finds that there may be no more.
    Begin,
    Process,
    /// The fold's: decides, and appends what is new.
    Fold,
    Publish(Meta),
    Put(Meta),
    Ack,
    /// Takes the marks back.
    Clear,
}

impl Replica {
    pub(super) fn new(stage: &'static str, broken: Broken) -> Self {
        let from = if stage == "split" { "capture" } else { "split" };
        Self { stage, from, tasks: Vec::new(), known: HashSet::new(), last: 0, broken, drawn: 0 }
    }

    /// As the kernel kills: what it held is nowhere. Its successor begins with nothing, a fold with its changelog.
    pub(super) fn kill(&mut self) {
        self.tasks.clear();
        self.known.clear();
        self.last = 0;
    }

    /// Says that it is at work on what it runs alone. Of the others it does not, as if it were stopped now and then.
    pub(super) fn keep_alive(&self, broker: &mut Broker) {
        for task in self.tasks.iter().filter(|task| way(task.delivery.delivered) == Way::Alone) {
            broker.keep_alive(self.from, self.stage, task.delivery.sequence);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.tasks.is_empty()
    }

    /// One thing of what it could do now.
    pub(super) fn step(&mut self, broker: &mut Broker, items: &[Item], chance: &mut Chance) {
        // Of a fold's inputs one is handled after the other.
        let may_take = if self.stage == "fold" { self.tasks.is_empty() } else { self.tasks.len() < HELD };
        if may_take && (self.tasks.is_empty() || chance.one_in(3)) {
            self.take(broker, chance);
            return;
        }
        if self.tasks.is_empty() {
            return;
        }
        let at = chance.below(self.tasks.len());
        let mut task = self.tasks.swap_remove(at);
        if self.advance(&mut task, broker, items, chance) && !task.left.is_empty() {
            self.tasks.push(task);
        }
    }

    fn take(&mut self, broker: &mut Broker, chance: &mut Chance) {
        let Some(delivery) = broker.deliver(self.from, self.stage, chance) else { return };
        let meta = broker.link(self.from).messages[delivery.sequence].clone();
        let run = if self.stage == "fold" { Do::Fold } else { Do::Process };
        let left = match way(delivery.delivered) {
            Way::Alone if self.broken != Broken::NoMarks => [Do::Begin, run].into(),
            _ => [run].into(),
        };
        self.tasks.push(Task { delivery, meta, left });
    }

    /// Does the next thing; `false` when the process of the task has ended with it.
    fn advance(&mut self, task: &mut Task, broker: &mut Broker, items: &[Item], chance: &mut Chance) -> bool {
        let key = (self.stage, task.delivery.sequence);
        match task.left.pop_front() {
            Some(Do::Begin) => {
                let marks = broker.marks.get(&key).cloned().unwrap_or_default();
                if let Some(marks) = marks.begin() {
                    broker.marks.insert(key, marks);
                } else {
                    task.left.clear();
                    let (reason, detail) = marks.verdict();
                    self.answer(task, &Verdict::Reject { reason: reason.into(), detail }, Vec::new());
                }
                task.left.push_back(Do::Clear);
            }
            Some(Do::Process) => return self.process(task, broker, items),
            Some(Do::Fold) => self.fold(task, broker, chance),
            Some(Do::Publish(meta)) => {
                let result = broker.publish(self.stage, meta.clone(), chance);
                again(task, &result, Do::Publish(meta));
            }
            Some(Do::Put(meta)) => {
                let result = broker.put(meta.clone(), chance);
                again(task, &result, Do::Put(meta));
            }
            Some(Do::Ack) => broker.ack(self.from, self.stage, task.delivery.sequence, chance),
            Some(Do::Clear) => {
                broker.marks.remove(&key);
            }
            None => {}
        }
        true
    }

    fn process(&mut self, task: &mut Task, broker: &mut Broker, items: &[Item]) -> bool {
        let meta = &task.meta;
        if self.stage == "last" {
            let decision = self.child(meta, "decision.v1", 0, 1);
            self.answer(task, &outputs(), vec![Do::Put(decision)]);
            return true;
        }
        let item = items.iter().find(|item| item.id == meta.id).expect("an item");
        if item.is_poison {
            if let Some(marks) = broker.marks.get_mut(&(self.stage, task.delivery.sequence))
                && way(task.delivery.delivered) == Way::Alone
            {
                // In the quarantine: that ends, and this process sees it.
                *marks = marks.fatal(Death { reason: KILLED.into(), detail: String::new() });
                task.left = [Do::Begin, Do::Process].into();
                return true;
            }
            self.kill();
            return false;
        }
        let outputs_of = if item.parts == 0 {
            vec![Do::Put(self.child(meta, "empty.v1", 0, 1))]
        } else {
            let part = |index| Do::Publish(self.child(meta, "feature.v1", index, item.parts));
            (0..item.parts).map(part).collect()
        };
        self.answer(task, &outputs(), outputs_of);
        true
    }

    fn fold(&mut self, task: &mut Task, broker: &mut Broker, chance: &mut Chance) {
        let id = task.meta.id;
        if !self.known.contains(&id) || self.broken == Broken::FoldForgets {
            let appended = broker.append(self.last, id, chance);
            self.known.insert(id);
            if stored(&appended).is_none() {
                // Its state has a change that the changelog may lack: it is made anew, and the input decided again.
                self.known = broker.changelog.iter().copied().collect();
                self.last = broker.changelog.len() as u64;
                task.left.push_front(Do::Fold);
                return;
            }
            self.last += 1;
        }
        let assignment = self.child(&task.meta, "assignment.v1", 0, 1);
        self.answer(task, &outputs(), vec![Do::Put(assignment)]);
    }

    fn child(&self, meta: &Meta, kind: &str, index: usize, count: usize) -> Meta {
        let mut child = meta.child(self.stage, kind.into(), index, count);
        if self.broken == Broken::DrawsIds {
            child.id = Id::captured(self.stage, &format!("{} {}", meta.id, self.drawn));
        }
        child
    }

    /// Puts what an answer asks for before what is left.
    fn answer(&mut self, task: &mut Task, verdict: &Verdict, outputs: Vec<Do>) {
        self.drawn += 1;
        let dead = Meta { kind: "dead.v1".into(), stage: self.stage.into(), ..task.meta.clone() };
        let mut stores = if let Verdict::Reject { .. } = verdict { vec![Do::Put(dead)] } else { outputs };
        let mut todo: Vec<Do> = Vec::new();
        for step in steps(verdict) {
            match step {
                Step::Store => todo.append(&mut stores),
                Step::Ack => todo.push(Do::Ack),
                Step::CloseLetter | Step::Later => {}
            }
        }
        if self.broken == Broken::AcksFirst {
            todo.rotate_right(1);
        }
        for one in todo.into_iter().rev() {
            task.left.push_front(one);
        }
    }
}

fn outputs() -> Verdict {
    Verdict::Outputs { outputs: Vec::new(), empty: false }
}

/// What was not stored for certain is published again, under the same id.
fn again(task: &mut Task, result: &Result<Stored, PublishError>, what: Do) {
    if stored(result).is_none() {
        task.left.push_front(what);
    }
}
