//! Phrases that stand for what offices write and ask. All of it is made up; sentences are put together by seeded
//! choice, to any length.

use crate::random::Random;

const DISTRICTS: [&str; 8] = ["青河区", "南塘区", "望江区", "云岭县", "柳营街道", "石桥镇", "北苑新区", "东湖开发区"];
const PLACES: [&str; 8] = [
    "幸福里小区三号楼",
    "中心小学门口",
    "解放路与滨河路路口",
    "农贸市场西侧",
    "地铁二号线出口",
    "老年活动中心",
    "阳光花园地下车库",
    "工业园南门",
];
const TROUBLES: [&str; 12] = [
    "夜间施工噪声很大",
    "路灯坏了一直没人修",
    "垃圾堆了几天没有清运",
    "自来水发黄有异味",
    "下水道堵塞污水外溢",
    "电梯经常停运",
    "消防通道被车辆占用",
    "餐馆油烟直排居民楼",
    "井盖松动有安全隐患",
    "暖气不热室温偏低",
    "共享单车乱停挡住盲道",
    "公交车长时间等不到",
];
const WHEN: [&str; 6] = ["昨天晚上", "最近一周", "从上个月开始", "今天早上", "每天半夜", "下雨以后"];
const EFFECTS: [&str; 6] =
    ["老人和孩子休息不好", "出行很不方便", "已经有人摔倒", "家里没法正常做饭", "多次找物业没有结果", "影响店铺营业"];
const WISHES: [&str; 5] =
    ["尽快派人处理", "给一个明确的答复时间", "到现场看一看", "联系我说明情况", "督促责任单位整改"];

/// What a caller says, as the agent of a government hotline writes it down.
pub fn complaint(random: &mut Random) -> String {
    format!(
        "市民来电：{}{}，{}{}，{}。希望{}。来电尾号{:04}。",
        random.pick(&DISTRICTS),
        random.pick(&PLACES),
        random.pick(&WHEN),
        random.pick(&TROUBLES),
        random.pick(&EFFECTS),
        random.pick(&WISHES),
        random.below(10_000)
    )
}

pub const HOTLINE_RULES: &str = "你是政务服务热线的派单助手。根据来电内容填写工单，只输出一个 JSON 对象，不要解释。\
    字段：category 是诉求类别，department 是承办单位，urgency 是紧急程度，location 是地点，summary 是一句话摘要。\
    涉及人身安全的为紧急；影响基本生活的为较急；其余为一般。";

const SUBJECTS: [&str; 8] = [
    "老旧小区改造",
    "汛期安全检查",
    "政务服务大厅延时服务",
    "城市绿化养护",
    "中小企业纾困",
    "冬季供暖保障",
    "数据共享平台建设",
    "社区养老服务",
];
const KINDS: [&str; 6] = ["工作方案", "情况通报", "会议纪要", "请示", "年度总结", "实施意见"];
const DEMANDS: [&str; 5] = [
    "写明目标、措施、分工和时限",
    "分条列出，语言简明",
    "先讲背景，再讲问题，最后讲建议",
    "附一张任务分工表",
    "突出为群众办实事",
];

/// An order for a long document.
pub fn draft_order(random: &mut Random) -> String {
    format!(
        "请以{}办公室的名义起草一份关于{}的{}，{}，不少于{}字。",
        random.pick(&DISTRICTS),
        random.pick(&SUBJECTS),
        random.pick(&KINDS),
        random.pick(&DEMANDS),
        800 + 100 * random.below(13)
    )
}

const ACTORS: [&str; 6] = ["主管部门", "申请人", "承办单位", "街道办事处", "审批窗口", "监督机构"];
const MUSTS: [&str; 6] = ["应当", "可以", "不得", "有权", "负责", "必须"];
const ACTIONS: [&str; 10] = [
    "公开办理流程",
    "提交身份证明和申请表",
    "组织现场核查",
    "出具书面意见",
    "建立工作台账",
    "听取利害关系人的意见",
    "保存档案五年以上",
    "退还已收取的费用",
    "说明不予受理的理由",
    "向社会公布咨询电话",
];
const TERMS: [&str; 6] = [
    "自受理之日起十个工作日内完成",
    "逾期未办的视为同意",
    "情况复杂的经批准可以延长十五日",
    "每季度汇总一次",
    "由本级财政安排经费",
    "违反本条规定的依法追究责任",
];

/// The article `number` of a set of rules.
fn article(number: usize, random: &mut Random) -> String {
    let mut text = format!("第{number}条　");
    for _ in 0..2 + random.below(3) {
        text.push_str(&format!(
            "{}{}{}，{}。",
            random.pick(&ACTORS),
            random.pick(&MUSTS),
            random.pick(&ACTIONS),
            random.pick(&TERMS)
        ));
    }
    text.push('\n');
    text
}

/// Rules of exactly `chars` characters.
pub fn document(chars: usize, random: &mut Random) -> String {
    let mut text = String::from("政务服务办理规定（汇编）\n");
    for number in 1.. {
        let so_far = text.chars().count();
        if so_far >= chars {
            break;
        }
        text.push_str(&article(number, random));
    }
    text.chars().take(chars).collect()
}

/// A question about such rules.
pub fn question(random: &mut Random) -> String {
    format!(
        "根据上述规定，{}{}{}时，{}应当注意什么？请说明依据第几条，编号{:05}。",
        random.pick(&DISTRICTS),
        random.pick(&WHEN),
        random.pick(&ACTIONS),
        random.pick(&ACTORS),
        random.below(100_000)
    )
}
