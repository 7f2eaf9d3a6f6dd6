// Golden answers of the cron library that upstream uses: go run . > ../../crates/base/cron/tests/golden.txt
//
// The first line has the starts. Then "zone|schedule|steps", for each start the seconds to the next time and from there
// to the one after it, "-" for none; or "error|schedule|text".
package main

import (
	"fmt"
	"strings"
	"time"
	_ "time/tzdata"

	"github.com/robfig/cron/v3"
)

var schedules = []string{
	"* * * * *", "*/1 * * * ?", "0/15 * * * *", "0/1 * * * *", "5/20 * * * *", "5/20 8-18/2 * * *", "? ? * * ?", "3-10 * * * *",
	"0 18 1-7,15-21 * TUE", "0 10 10,27 * */2", "0 0 */2 * 1", "0 0 */1 * 1", "0 0 1 * */1", "*/5 14 * * *", "0 2 * * *", "30 2 * * *",
	"30 1 * * *", "0 3 * * *", "0 0 * * *", "30 0 * * *", "15 23 * * sun", "0 */2 * * *", "*/30 * * * *", "59 23 31 2 *", "0 0 31 2 *", "0 0 29 2 *",
	"0 0 30 2,4 *", "0 0 31 * *", "0 0 31 4,6,9,11 MON", "0 0 1 JAN mon-fri", "0 0 1,15 * 3", "0 12 * feb-apr/2 *", "5,10-20/3 * * * *", "1,,2 0 * * *", ", * * * *",
	"*-5 * * * *", "*-5/20 * * * *", "? 5 ? ? ?", "59 23 31 12 *", "0 0 13 * 5", "30 6-16/4 * * 1-5", "10/100 * * * *", "0 24/1 * * *",
	"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly",
	"@every 90s", "@every 500ms", "@every 1h30m", "@every 1500ms", "@every 0", "@every -5s", "@every 87600h", "@every 1.5h",
	"0 0 * * 7", "0 0 L * *", "@reboot", "@every", "@every ", "@every x", "@every 5", "@hourly ", " @hourly", "", " ", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *",
	"* * 0 * *", "* * 32 * *", "* * * 13 *", "* * * 0 *", "*/0 * * * *", "*/x * * * *", "*/-5 * * * *", "*/+5 * * * *", "5-1 * * * *", "1-2-3 * * * *",
	"1/2/3 * * * *", "x * * * *", "-5 * * * *", "99999999999999999999 * * * *", "* * * foo *", "* * * * monday", "* * * JaN SuN", "+5 * * * *",
	"TZ=UTC 0 0 * * *", "CRON_TZ=Asia/Tokyo 0 0 * * *", "TZ=Nowhere/City 0 0 * * *", "TZ=UTC", "TZ=UTC ", "TZ= 0 0 * * *", "TZ=UTC @every 1h", "TZ=Asia/Tokyo @daily", "*/1/ * * * *", "/5 * * * *",
}

// Zones whose clocks change by an hour, by half an hour, at midnight, to and from UTC, and never.
var zones = []string{
	"UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "America/Sao_Paulo", "America/Santiago", "Atlantic/Azores", "Europe/London",
}

var starts = []string{
	"2026-01-01T00:00:00Z", "2026-03-08T04:30:30.5Z", "2026-03-08T06:59:59Z", "2026-03-28T21:15:00Z", "2026-03-29T00:30:00Z", "2026-10-24T22:10:00Z", "2026-10-25T00:30:00Z", "2026-11-01T03:15:00Z", "2026-11-01T05:30:00Z",
	"2026-04-04T13:10:00Z", "2026-10-03T14:10:00Z", "2018-11-03T22:00:00Z", "2018-02-17T23:30:00Z", "2026-09-05T23:00:00Z", "2026-04-04T23:00:00Z", "2024-02-28T23:59:59.999999999Z", "2027-12-31T23:59:00Z",
}

func main() {
	fmt.Println(strings.Join(starts, " "))
	for _, zone := range zones {
		loc, err := time.LoadLocation(zone)
		if err != nil {
			panic(err)
		}
		for _, text := range schedules {
			s, err := parse(text)
			if err != nil {
				if zone == "UTC" {
					fmt.Printf("error|%s|%s\n", text, err)
				}
				continue
			}
			var all []string
			for _, start := range starts {
				t, err := time.Parse(time.RFC3339Nano, start)
				if err != nil {
					panic(err)
				}
				t = t.In(loc)
				var steps []string
				for range 4 {
					before := t.Unix()
					t = s.Next(t)
					if t.IsZero() {
						steps = append(steps, "-")
						break
					}
					steps = append(steps, fmt.Sprint(t.Unix()-before))
				}
				all = append(all, strings.Join(steps, " "))
			}
			fmt.Printf("%s|%s|%s\n", zone, text, strings.Join(all, ","))
		}
	}
}

func parse(text string) (s cron.Schedule, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("invalid schedule format: %v", r)
		}
	}()
	return cron.ParseStandard(text)
}
