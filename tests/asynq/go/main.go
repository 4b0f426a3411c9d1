// Command asynqtool is the old world of the tests: what producers, workers and operators do with the real Asynq.
//
//	asynqtool ADDRESS enqueue  < tasks.json   prints the id of each task
//	asynqtool ADDRESS serve MODE QUEUE...     works until SIGTERM, and prints a line for each task that it has begun
//	asynqtool ADDRESS inspect                 prints all queues and tasks as Asynq's Inspector sees them
//	asynqtool ADDRESS unpause QUEUE
//	asynqtool ADDRESS run QUEUE ID            makes an archived, retrying or scheduled task pending
//
// ADDRESS is host:port, or cluster:host:port. MODE is one of done, fail=SECONDS (it is retried so much later), archive
// and hang (it never ends).
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hibiken/asynq"
)

type taskRequest struct {
	Type        string  `json:"type"`
	Payload     *string `json:"payload"`
	Queue       string  `json:"queue"`
	ID          string  `json:"id"`
	MaxRetry    *int    `json:"max_retry"`
	InSeconds   float64 `json:"in_seconds"`
	UniqueFor   int     `json:"unique_seconds"`
	RetainedFor int     `json:"retention_seconds"`
	Group       string  `json:"group"`
}

func main() {
	log.SetFlags(0)
	connection := connectionTo(os.Args[1])
	switch command, arguments := os.Args[2], os.Args[3:]; command {
	case "enqueue":
		enqueue(connection)
	case "serve":
		serve(connection, arguments[0], arguments[1:])
	case "inspect":
		inspect(connection)
	case "unpause":
		check(asynq.NewInspector(connection).UnpauseQueue(arguments[0]))
	case "run":
		check(asynq.NewInspector(connection).RunTask(arguments[0], arguments[1]))
	default:
		log.Fatalf("unknown command %s", command)
	}
}

func connectionTo(address string) asynq.RedisConnOpt {
	if node, isCluster := strings.CutPrefix(address, "cluster:"); isCluster {
		return asynq.RedisClusterClientOpt{Addrs: []string{node}}
	}
	return asynq.RedisClientOpt{Addr: address}
}

func enqueue(connection asynq.RedisConnOpt) {
	var requests []taskRequest
	check(json.NewDecoder(os.Stdin).Decode(&requests))
	client := asynq.NewClient(connection)
	defer client.Close()
	for _, request := range requests {
		options := []asynq.Option{asynq.Queue(request.Queue)}
		if request.ID != "" {
			options = append(options, asynq.TaskID(request.ID))
		}
		if request.MaxRetry != nil {
			options = append(options, asynq.MaxRetry(*request.MaxRetry))
		}
		if request.InSeconds != 0 {
			options = append(options, asynq.ProcessIn(time.Duration(request.InSeconds*float64(time.Second))))
		}
		if request.UniqueFor != 0 {
			options = append(options, asynq.Unique(time.Duration(request.UniqueFor)*time.Second))
		}
		if request.RetainedFor != 0 {
			options = append(options, asynq.Retention(time.Duration(request.RetainedFor)*time.Second))
		}
		if request.Group != "" {
			options = append(options, asynq.Group(request.Group))
		}
		var payload []byte
		if request.Payload != nil {
			payload = []byte(*request.Payload)
		}
		info, err := client.Enqueue(asynq.NewTask(request.Type, payload), options...)
		check(err)
		fmt.Println(info.ID)
	}
}

func serve(connection asynq.RedisConnOpt, mode string, queues []string) {
	priorities := map[string]int{}
	for _, queue := range queues {
		priorities[queue] = 1
	}
	mode, delay, _ := strings.Cut(mode, "=")
	handler := func(_ context.Context, task *asynq.Task) error {
		fmt.Println(task.Type(), task.ResultWriter().TaskID())
		switch mode {
		case "fail":
			return fmt.Errorf("it failed")
		case "archive":
			return fmt.Errorf("it failed for good: %w", asynq.SkipRetry)
		case "hang":
			select {}
		}
		return nil
	}
	server := asynq.NewServer(connection, asynq.Config{
		Queues:                   priorities,
		Concurrency:              10,
		LogLevel:                 asynq.ErrorLevel,
		TaskCheckInterval:        200 * time.Millisecond,
		DelayedTaskCheckInterval: 200 * time.Millisecond,
		ShutdownTimeout:          200 * time.Millisecond,
		RetryDelayFunc: func(int, error, *asynq.Task) time.Duration {
			seconds, _ := strconv.ParseFloat(delay, 64)
			return time.Duration(seconds * float64(time.Second))
		},
	})
	check(server.Run(asynq.HandlerFunc(handler)))
}

type seenTask struct {
	Queue, ID, Type, State, LastErr string
	Orphaned                        bool
	Retried                         int
}

func inspect(connection asynq.RedisConnOpt) {
	inspector := asynq.NewInspector(connection)
	defer inspector.Close()
	queues, err := inspector.Queues()
	check(err)
	infos, tasks := []*asynq.QueueInfo{}, []seenTask{}
	for _, queue := range queues {
		info, err := inspector.GetQueueInfo(queue)
		check(err)
		infos = append(infos, info)
		for _, list := range []func(string, ...asynq.ListOption) ([]*asynq.TaskInfo, error){
			inspector.ListPendingTasks, inspector.ListActiveTasks, inspector.ListScheduledTasks,
			inspector.ListRetryTasks, inspector.ListArchivedTasks, inspector.ListCompletedTasks,
		} {
			found, err := list(queue, asynq.PageSize(10000))
			check(err)
			for _, task := range found {
				tasks = append(tasks, seen(task))
			}
		}
		groups, err := inspector.Groups(queue)
		check(err)
		for _, group := range groups {
			found, err := inspector.ListAggregatingTasks(queue, group.Group, asynq.PageSize(10000))
			check(err)
			for _, task := range found {
				tasks = append(tasks, seen(task))
			}
		}
	}
	check(json.NewEncoder(os.Stdout).Encode(map[string]any{"queues": infos, "tasks": tasks}))
}

func seen(task *asynq.TaskInfo) seenTask {
	return seenTask{
		Queue: task.Queue, ID: task.ID, Type: task.Type, State: task.State.String(), LastErr: task.LastErr,
		Orphaned: task.IsOrphaned, Retried: task.Retried,
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
